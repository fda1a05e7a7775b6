"""Children of a launcher: started, watched, restarted, and never left behind.

Each child leads its own session (so Ctrl-C reaches the launcher alone), logs
into its own file, and is killed by the kernel when the launcher dies. The thread
that starts one must live until it has ended: the kernel watches that thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from launch.launcher.oom import MemoryWatch, peak_bytes
from pipeline.system.private_dirs import UMASK
from pipeline.wire.keys import IPC_LIMIT

PROVED_S = 600.0
"""A process that has run for so long is one that can run."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
# Large blocks are kept by malloc: without these a training call takes up to three times as long.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "200000000",
}
# Torchrun's own variables would make a child believe that it is a rank of it.
_FOREIGN = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_", "OMP_")


def clean_environment() -> dict[str, str]:
    """This process's environment without torchrun's variables."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}


def engine_environment(directory: Path) -> dict[str, str]:
    """What an engine needs beside what it inherits: `directory` is removed after it, and with it
    the sockets that vLLM's own processes leave when they are killed (named by 36 characters)."""
    fits = len(os.fsencode(directory)) + len("/") + 36 <= IPC_LIMIT
    return {"VLLM_RPC_BASE_PATH": str(directory)} if fits else {}


def learner_arguments(rank: int, ranks: int, resume: str) -> list[str]:
    """Arguments of `learner.learner_rank` beside its sockets; `resume`: a checkpoint, or ''."""
    arguments = ["--rank", str(rank), "--world", str(ranks)]
    return [*arguments, "--resume", resume] if resume else arguments


def learner_environment(
    rank: int, ranks: int, port: int, host: str = "127.0.0.1"
) -> dict[str, str]:
    """What a learner rank needs to meet the others at this address of rank 0's machine."""
    return _MALLOC | {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends; passed on to what it becomes."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """One process by name; `start()` again after it has ended.

    `starts` counts those since it last ran for `PROVED_S`: what ends once a day is no process that
    cannot run.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name, self.command, self.log = name, list(command), log
        self.environment = dict(environment)
        self.starts = 0
        self.next_start = 0.0  # monotonic; restarts back off
        self._peak = 0  # bytes of memory, the most that was seen of its present process
        self._killed = False  # by us
        self._started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, pass_fds: Sequence[int] = ()) -> None:
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
                umask=UMASK,
                preexec_fn=die_with_parent,  # noqa: PLW1509  one call into libc, no locks
                pass_fds=tuple(pass_fds),
            )
        self.starts += 1
        self._started_at = time.monotonic()
        self._peak, self._killed = 0, False

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def ended(self) -> str | None:
        """How it ended ('exit 1', 'killed by SIGKILL'), None while it runs or never ran."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        if code >= 0:
            return f"exit {code}"
        return f"killed by {signal.Signals(-code).name}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def collect(self) -> str | None:
        """Like `ended`, once: afterwards it counts as not started."""
        how = self.ended()
        if how is not None:
            self._process = None
            if time.monotonic() - self._started_at > PROVED_S:
                self.starts = 1
        return how

    def look(self) -> None:
        """Remember how much memory it has had: when it is gone, nobody can tell."""
        if self._process is not None:
            self._peak = max(self._peak, peak_bytes(self._process.pid))

    def why(self, how: str, watch: MemoryWatch) -> str:
        """What `ended` leaves out, where it was killed and not by us; '' if nothing."""
        return "" if self._killed else watch.why(how, self._peak)

    def end(self, number: int) -> None:
        """Signal the child's whole session."""
        self._killed = self._killed or number == signal.SIGKILL
        for process in self.family():
            _signal(process, number)

    def family(self) -> list[psutil.Process]:
        """The child and everything that it has started."""
        if self._process is None:
            return []
        try:
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.Error:
            return []

    def tail(self, lines: int = 12) -> str:
        """The end of its log, for the error message."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def _families(children: Sequence[Child]) -> list[psutil.Process]:
    return [process for child in children for process in child.family()]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.Error):
        # Python's tracker ends when those it watches have, and removes their shared memory then.
        tracker = "multiprocessing.resource_tracker" in " ".join(process.cmdline())
        if not (tracker and number == signal.SIGKILL):
            process.send_signal(number)


def end_all(children: Sequence[Child], grace_s: float) -> None:
    """Wait for all to end by themselves, then terminate, then kill."""
    families: list[psutil.Process] = []
    steps = ((None, grace_s), (signal.SIGTERM, 1.0), (signal.SIGKILL, 10.0))
    for number, wait_s in steps:
        families = list({p.pid: p for p in families + _families(children)}.values())
        for process in families:
            if number is not None:
                _signal(process, number)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            families = [p for p in families if _lives(p)]
            # A process looks dead when its first thread is, and can be reaped when its last is.
            if not any([*families, *(child.running for child in children)]):
                return
            time.sleep(0.05)
