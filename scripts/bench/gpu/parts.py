"""Runs the parts of a GPU benchmark: processes with a time limit, and the memory they took."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

LATE = "not done within"
"""How the error of a part begins that was ended at its limit."""
GRACE_S = 12.0  # from Ctrl-C to the end of a run: a little more than `timeouts.stop_s`
_POLL_S = 0.5


class Memory(threading.Thread):
    """Peak device memory of each process and of all, by nvidia-smi; nothing without it."""

    def __init__(self) -> None:
        super().__init__(name="memory", daemon=True)
        self.most_mib: dict[str, int] = {}
        self._over = threading.Event()
        self._tool = shutil.which("nvidia-smi")

    def run(self) -> None:
        while self._tool and not self._over.wait(_POLL_S):
            for line in self._ask("gpu", "memory.used"):
                self._note("all", line)
            for line in self._ask("compute-apps", "pid,used_memory"):
                pid, _, used = line.partition(",")
                self._note(_role(int(pid)), used)

    def stop(self) -> dict[str, int]:
        self._over.set()
        self.join()
        return self.most_mib

    def _ask(self, about: str, what: str) -> list[str]:
        command = [str(self._tool), f"--query-{about}={what}", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.splitlines()

    def _note(self, name: str, used: str) -> None:
        if used.strip().isdigit():  # "[N/A]" where a container hides it
            self.most_mib[name] = max(int(used), self.most_mib.get(name, 0))


def _role(pid: int) -> str:
    """Names the role of a process by its command line."""
    with contextlib.suppress(psutil.Error):
        words = " ".join(psutil.Process(pid).cmdline())
        for module, role in (("engines.worker", "engine"), ("learner.learner_rank", "learner")):
            if module in words:
                return role
    return "other"


def run_limited(command: Sequence[str], log: Path, limit_s: float) -> str:
    """Runs a module under a time limit. Returns what went wrong, or ''."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"{LATE} {limit_s:.0f} s; see {log}"
    return f"status {status}; see {log}" if status else ""


class Parts:
    """Runs parts one after another, within `all_s` in all. Writes OUT/gpu.json after each.

    One that fails or hangs does not stop the others.
    """

    def __init__(self, out: Path, all_s: float, **document: Any) -> None:
        self.document: dict[str, Any] = {**document, "parts": {}}
        self._out, self._ends = out, time.monotonic() + all_s

    @property
    def left_s(self) -> float:
        return self._ends - time.monotonic()

    def run_part(self, name: str, command: Sequence[str], limit_s: float) -> dict[str, Any]:
        """Runs a module. Returns its entry of the document, to which results can be added."""
        memory, begun = Memory(), time.monotonic()
        memory.start()
        limit_s = max(1.0, min(limit_s, self.left_s))
        error = run_limited(command, self._out / f"{name}.log", limit_s)
        done = {"error": error, "seconds": time.monotonic() - begun, "memory_mib": memory.stop()}
        print(f"{name}: {done['seconds']:.0f} s {error}", flush=True)
        self.document["parts"][name] = done
        self.write()
        return done

    def measure_alone(
        self, name: str, module: str, config: Path, limit_s: float, *more: str
    ) -> dict[str, Any]:
        """Runs a module that measures by a configuration. Returns its entry, with its results as
        `found` if it wrote any."""
        file = self._out / f"{name}.json"
        command = [module, "--config", str(config), "--out", str(file), *more]
        done = self.run_part(name, command, limit_s)
        if file.exists():
            done["found"] = json.loads(file.read_text())
        return done

    def write(self) -> None:
        (self._out / "gpu.json").write_text(json.dumps(self.document, indent=1) + "\n")
