"""Child processes of a launcher: started, watched, restarted, and never left behind.

Each child leads its own session (so Ctrl-C reaches only the launcher), logs into its own file, and
is killed by the kernel when the launcher dies. The thread that starts one must live until it has
ended: the kernel watches that thread.
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
from launch.launcher.reasons import innermost_reason
from pipeline.system.private_dirs import UMASK
from pipeline.system.progress import newest
from pipeline.system.python_path import SAFE
from pipeline.wire.keys import IPC_LIMIT

STABLE_S = 600.0
"""Seconds after which a process counts as working: its restarts are counted from 0 again."""
_TAIL_BYTES = 64 << 10
"""Bytes that are read of a log for its last lines, however long it is."""
_REASON_BYTES = 1 << 20
"""Bytes in which the reason of an end is looked for."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
# malloc keeps large blocks: without these a training call takes up to three times as long.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "200000000",
}


def engine_environment(directory: Path) -> dict[str, str]:
    """Returns an engine's own environment variables. vLLM's sockets (names of 36 characters) go to
    `directory`, which is removed afterwards: killed vLLM processes leave them behind."""
    fits = len(os.fsencode(directory)) + len("/") + 36 <= IPC_LIMIT
    return {"VLLM_RPC_BASE_PATH": str(directory)} if fits else {}


def learner_arguments(rank: int, ranks: int, resume: str, micro_batch_tokens: int) -> list[str]:
    """Returns arguments of `learner.learner_rank`.

    Args:
        resume: a checkpoint, or ''.
        micro_batch_tokens: see `pipeline.system.micro_batch_limit`.
    """
    arguments = ["--rank", str(rank), "--world", str(ranks)]
    arguments += ["--micro-batch-tokens", str(micro_batch_tokens)]
    return [*arguments, "--resume", resume] if resume else arguments


def learner_environment(
    rank: int, ranks: int, port: int, host: str = "127.0.0.1", store: str = ""
) -> dict[str, str]:
    """Returns a learner rank's environment, with what the ranks find each other by.

    Args:
        port: of rank 0, where ranks are on several machines; else only a number of this run, by
            which DeepSpeed names its shared memory.
        store: file in the run's private directory, where all ranks are on one machine.
    """
    found = _MALLOC | {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    return found | {"DARTS_RANKS_STORE": store} if store else found


def die_with_parent() -> None:
    """Has the kernel kill this process when the thread that started it ends; survives `exec`."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """One process by name; `start()` again after it has ended.

    `starts` counts starts since it last ran for `STABLE_S`: a process that ends once a day works.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        umask: int = UMASK,
    ) -> None:
        self.name, self.command, self.log = name, list(command), log
        self._umask = umask
        self.environment = dict(environment)
        self.starts = 0
        self.next_start = 0.0  # monotonic; restarts back off
        self._peak = 0  # bytes, largest observed memory of the current process
        self._killed = False  # by us
        self._log_began = 0  # bytes of its log before the current start
        self._started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, pass_fds: Sequence[int] = ()) -> None:
        with open(self.log, "ab") as log:
            self._log_began = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, SAFE, "-u", "-m", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
                umask=self._umask,
                preexec_fn=die_with_parent,  # noqa: PLW1509  one call into libc, no locks
                pass_fds=tuple(pass_fds),
            )
        self.starts += 1
        self._started_at = time.monotonic()
        self._peak, self._killed = 0, False

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def exit_text(self) -> str | None:
        """Returns how it ended ('exit 1', 'killed by SIGKILL'); None if it runs or never ran."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        if code >= 0:
            return f"exit {code}"
        return f"killed by {signal.Signals(-code).name}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def take_exit(self) -> str | None:
        """Returns `exit_text` once: afterwards the child counts as not started."""
        how = self.exit_text()
        if how is not None:
            self._process = None
            if time.monotonic() - self._started_at > STABLE_S:
                self.starts = 1
        return how

    def sample_memory(self) -> None:
        """Records its memory so far, which cannot be read after its end."""
        if self._process is not None:
            self._peak = max(self._peak, peak_bytes(self._process.pid))

    def memory_note(self, how: str, watch: MemoryWatch) -> str:
        """Explains a kill that was not ours by its memory; '' if there is nothing to say."""
        return "" if self._killed else watch.explain_kill(how, self._peak)

    def signal_all(self, number: int) -> None:
        """Sends a signal to the child and all its descendants."""
        self._killed = self._killed or number == signal.SIGKILL
        for process in self.process_tree():
            _signal(process, number)

    def process_tree(self) -> list[psutil.Process]:
        """Returns the child and all its descendants."""
        if self._process is None:
            return []
        try:
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.Error:
            return []

    def tail(self, lines: int = 12) -> str:
        """Returns the end of its log, for the error message; before it the innermost exception
        since it was started, if that is not among these lines."""
        last = "\n".join(self._log(_TAIL_BYTES).splitlines()[-lines:])
        reason = innermost_reason(self._log(_REASON_BYTES))
        return last if not reason or reason in last else f"{reason}\n...\n{last}"

    def reason(self) -> str:
        """Returns why it ended, in one line: its innermost exception, or its last line."""
        text = self._log(_REASON_BYTES)
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        return innermost_reason(text) or last.strip()[:_TAIL_BYTES]

    def doing(self) -> str:
        """Returns what it has announced last of its start; '' if it does not run or has started."""
        return newest(self._log(_TAIL_BYTES)) if self.running else ""

    def said(self, text: str) -> bool:
        """Returns True if the first part of its log since it was started holds this text."""
        return text in self._log(_REASON_BYTES, first=True)

    def _log(self, most: int, *, first: bool = False) -> str:
        """Returns the last (or first) `most` bytes that it has logged since it was started."""
        try:
            with self.log.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                begin = self._log_began if first else max(self._log_began, size - most)
                file.seek(begin)
                return file.read(max(0, min(most, size - begin))).decode(errors="replace")
        except OSError:
            return ""


def _process_trees(children: Sequence[Child]) -> list[psutil.Process]:
    return [process for child in children for process in child.process_tree()]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.Error):
        # Python's tracker ends after the processes it watches, and removes their shared memory.
        tracker = "multiprocessing.resource_tracker" in " ".join(process.cmdline())
        if not (tracker and number == signal.SIGKILL):
            process.send_signal(number)


def end_all(children: Sequence[Child], grace_s: float) -> None:
    """Waits for all to end by themselves, then terminates, then kills them."""
    families: list[psutil.Process] = []
    # A learner rank stays at the first SIGTERM, for a checkpoint that nobody will ask for.
    term = signal.SIGTERM
    steps = ((None, grace_s), (term, 0.2), (term, 1.0), (signal.SIGKILL, 10.0))
    for number, wait_s in steps:
        families = list({p.pid: p for p in families + _process_trees(children)}.values())
        for process in families:
            if number is not None:
                _signal(process, number)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            families = [p for p in families if _lives(p)]
            # A process looks dead once its first thread is, but can be reaped only after its last.
            if not any([*families, *(child.running for child in children)]):
                return
            time.sleep(0.05)
