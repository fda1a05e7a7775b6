"""One run that is disturbed, resumed, and disturbed again, until its data is at its end.

`DisturbedRun` starts `darts train` and resumes it, knows its processes by role, and says what it
has done. It has its own temporary directory, and every process that loses its parent becomes a
child of ours (`adopt_orphans`): nothing that a run leaves behind goes unseen.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import psutil

from launch.launcher.local import free_port
from pipeline.checkpoint import store
from pipeline.system.temp_dirs import SHARED_MEMORY
from scripts.bench.namespaces import ROOT, Started
from scripts.faults.records import steps_done

Role = Literal["launcher", "stage", "engine", "learner", "reward worker"]
MODULES: dict[Role, str] = {
    "launcher": "launch.cli",
    "stage": "pipeline.stage",
    "engine": "engines.worker",
    "learner": "learner.learner_rank",
    "reward worker": "pipeline.workers",
}
PROMPTS = 64
STEP_PROMPTS = 2
HEARTBEAT_S = 12.0
"""Seconds of silence after which a process is lost."""
SETTINGS = [
    f"reward.python.function={__name__}:reward",
    "step.count=1000000",  # it ends with its data
    f"step.prompts={STEP_PROMPTS}",
    "group.size=4",
    "sampling.max_tokens=64",
    "prompt_order.shuffled.epochs=1",
    "data.held_out=0",
    "eval.every=0",
    "checkpoint.every=2",
    "learner.warmup_steps=2",
    "engine.restarts=1000000",
    f"timeouts.heartbeat_s={HEARTBEAT_S}",
]
START_LIMIT_S = 400.0
STEP_LIMIT_S = 240.0
END_LIMIT_S = 120.0
GONE_S = 15.0
"""How long processes may take to be gone after their launcher."""
_LOOK_S, _SCAN_S = 0.05, 1.0
_CACHE = "torchinductor_"
"""Torch's own, for all programs of a user."""
_PR_SET_CHILD_SUBREAPER = 36


def reward(sample: Any) -> float:
    """Rewards short responses."""
    return float(sample.tokens < 20)


def adopt_orphans() -> None:
    """Has the kernel give this process every orphan among its descendants."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Stuck(Exception):
    """The run does neither what it should nor anything else; the message says what was awaited."""


class DisturbedRun:
    """A run's folder and the process that trains in it, if there is one.

    Args:
        folder: an empty directory for the run and all that belongs to it.
        settings: beside `SETTINGS`.
        preload: a library that makes writes fail as `plan` says; None: none could be built.
        patience: factor of all limits, for a machine that is busy with other work.
    """

    def __init__(
        self, folder: Path, settings: list[str], preload: Path | None, patience: float = 1.0
    ) -> None:
        self._patience = patience
        self.folder, self.path = folder, folder / "run"
        self.plan = folder / "failing-writes"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        data = folder / "train.jsonl"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in _rows()), encoding="utf-8")
        self._settings = [*SETTINGS, *settings, f"data.train={data}"]
        self.port = free_port()
        self._settings.append(f"metrics.prometheus_port={self.port}")
        self._preload = preload
        self.lives = 0
        self.job: Started | None = None
        self.reader: subprocess.Popen[bytes] | None = None  # of its output, as `| tee log`
        self._begun = 0.0
        self._pids: set[int] = set()  # of all processes of all lives
        # Whoever makes a run may have children of its own, which are none of ours to kill.
        self._others = set(psutil.Process().children())
        self.expected = ""  # words that it has to show before it trains again

    def __enter__(self) -> DisturbedRun:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (left := self.running()):
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._close()
        psutil.wait_procs(left, GONE_S)
        for directory in self.leftovers():
            shutil.rmtree(directory, ignore_errors=True)

    # --- its lives --------------------------------------------------------------------------

    def start(self) -> None:
        """Starts it, or resumes it from its newest checkpoint."""
        arguments = ["train", "configs/quickstart.yaml", "--out", str(self.path), *self._settings]
        self.begin(["train", "--resume", str(self.path)] if self.path.exists() else arguments)

    def begin(self, arguments: list[str]) -> None:
        """Starts a life with these arguments of `darts`."""
        self.lives += 1
        log = self.folder / f"life-{self.lives}.log"
        with log.open("wb") as file:
            self.reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
        variables = {"TMPDIR": str(self.temporary), "DARTS_FAILING_WRITES": str(self.plan)}
        if self._preload is not None:
            variables["LD_PRELOAD"] = str(self._preload)
        self._begun = time.time()
        command = [sys.executable, "-m", "launch.cli", *arguments]
        assert self.reader.stdin is not None
        self.job = Started(command, log, ROOT, variables, self.reader.stdin)
        self.reader.stdin.close()

    def _close(self) -> None:
        """Ends what belongs to the last life, once it has ended."""
        if self.job is not None:
            self.job.__exit__()
            self.job = None
        if self.reader is not None:
            with contextlib.suppress(ProcessLookupError):
                self.reader.send_signal(signal.SIGCONT)
            try:
                self.reader.wait(5.0)  # what is still in the pipe
            except subprocess.TimeoutExpired:
                self.reader.kill()
                self.reader.wait()
            self.reader = None

    def ended(self) -> int | None:
        """Returns the status of the life that has just ended; None while it runs."""
        return self.job.process.poll() if self.job is not None else None

    def finish_life(self) -> list[str]:
        """Looks at what a life that has ended left behind. Returns the problems."""
        assert self.job is not None
        status = self.job.process.returncode
        found: list[str] = []
        if alive := self._wait_gone():
            found.append(f"processes are left: {', '.join(map(_words, alive))}")
        # Who was killed leaves things behind: the next start of any run removes them.
        if status != -signal.SIGKILL and (left := self.leftovers()):
            found.append(f"left behind: {', '.join(map(str, left))}")
        self._close()
        if "Traceback (most recent call last)" in self.text:
            found.append(f"a traceback in {self.folder / f'life-{self.lives}.log'}")
        return found

    def _wait_gone(self) -> list[psutil.Process]:
        deadline = time.monotonic() + GONE_S * self._patience
        while (alive := self.running()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return alive

    # --- what it does -----------------------------------------------------------------------

    @property
    def text(self) -> str:
        """All that its newest life has shown."""
        log = self.folder / f"life-{self.lives}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    @property
    def sockets(self) -> Path:
        return Path((self.path / "address").read_text().strip())

    @property
    def steps(self) -> int:
        return steps_done(self.path)

    @property
    def trains(self) -> bool:
        """True once this life has begun to train."""
        live = self.path / "live.json"
        try:
            if live.stat().st_mtime < self._begun:
                return False
            return json.loads(live.read_bytes())["phase"] == "training"
        except (OSError, ValueError):  # not there yet, or half written where writes fail
            return False

    @property
    def life_s(self) -> float:
        """Seconds since this life was started."""
        return time.time() - self._begun

    @property
    def checkpoints(self) -> list[Path]:
        return store.committed(self.path / "checkpoints")

    @property
    def writes_checkpoint(self) -> bool:
        return any((self.path / "checkpoints").glob(".tmp-*"))

    def wait(self, what: Callable[[], bool], awaited: str, limit_s: float) -> bool:
        """Waits until it holds (True) or the life has ended (False). Raises Stuck."""
        limit_s *= self._patience
        begun = looked_at = time.monotonic()
        assert self.job is not None
        while self.job.process.poll() is None:
            if what():
                return True
            now = time.monotonic()
            if now > begun + limit_s:
                raise Stuck(f"{awaited}: not within {limit_s:.0f} s; it said:\n{self.text[-2000:]}")
            if now > looked_at + _SCAN_S:  # costs a look at every process of the machine
                looked_at = now
                self.running()
            time.sleep(_LOOK_S)
        self.running()
        return False

    # --- its processes ----------------------------------------------------------------------

    def running(self) -> list[psutil.Process]:
        """Returns all processes that it has started and that live, also those whose parent is
        gone; the launcher first, if it lives."""
        found: dict[int, psutil.Process] = {}
        for process in self._descendants():
            with contextlib.suppress(psutil.Error, ChildProcessError):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = process
                elif process.ppid() == os.getpid() and process.pid != self._launcher_pid:
                    os.waitpid(process.pid, os.WNOHANG)  # adopted
        self._pids |= found.keys()
        return list(found.values())

    def _descendants(self) -> Iterator[psutil.Process]:
        """Yields the processes that it has started, and the adopted ones, with their children."""
        reader = self.reader.pid if self.reader is not None else 0
        for child in psutil.Process().children():
            if child not in self._others and child.pid != reader:
                yield child
                with contextlib.suppress(psutil.NoSuchProcess):
                    yield from child.children(recursive=True)

    @property
    def _launcher_pid(self) -> int:
        return self.job.process.pid if self.job is not None else 0

    def of_role(self, role: Role) -> list[psutil.Process]:
        """Returns its processes of a role; of an engine also the processes that it has started."""
        if role == "launcher":
            return [p for p in self.running() if p.pid == self._launcher_pid]
        found: list[psutil.Process] = []
        for process in self.running():
            with contextlib.suppress(psutil.Error):
                if MODULES[role] in process.cmdline():
                    found += [process, *(process.children() if role == "engine" else [])]
        return found

    def leftovers(self) -> list[Path]:
        """Returns what its processes have left in memory and in the temporary directory."""
        temporary = (p for p in self.temporary.iterdir() if not p.name.startswith(_CACHE))
        return [*temporary, *self._in_memory()]

    def _in_memory(self) -> Iterator[Path]:
        names = {str(pid) for pid in self._pids}
        for path in SHARED_MEMORY.iterdir():
            if names & set(path.name.replace("_", "-").split("-")):
                yield path


def _rows() -> Iterator[dict[str, str]]:
    for number in range(PROMPTS):
        a, b = divmod(number, 8)
        yield {"prompt": f"{a}+{b}=", "answer": str(a + b)}


def _words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.pid} ({' '.join(process.cmdline())[:80]})"
    return str(process.pid)
