"""Runs pytest on mutants, each in a forked process over a copy of the tree.

Modules of other people are imported once, before the fork; ours are read from the copy. A
trial that takes too long is ended with all that it has started. Nothing in the checkout
itself is ever changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import psutil

Outcome = Literal["killed", "timeout", "survived", "unreached"]
PYTEST = ("-x", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist")
# What was imported before the fork is none of ours: no `assert` in it is to be explained.
REWRITTEN = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
MEMORY = 8 << 30
"""Bytes of data that a trial may hold: a loop that never ends must not take the machine."""
PASSED, FAILED, INTERRUPTED, NOTHING = 0, 1, 2, 5  # of pytest
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "runs", "site", "dist", "build")
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2): processes whose parent is gone become ours."""


class Job(NamedTuple):
    """One pytest run over a copy."""

    copy: Path
    plugin: object
    stages: tuple[tuple[str, ...], ...]
    """Files of tests, one pytest after another until one fails: collecting them takes longest."""
    log: Path
    limit_s: float
    more: tuple[str, ...] = ()
    """Further arguments of pytest."""


class Copies:
    """Copies of the tree for so many trials side by side; removed at the end."""

    def __init__(self, root: Path, work: Path, count: int) -> None:
        self.all = [work / f"copy-{number}" for number in range(count)]
        for copy in self.all:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(root, copy, ignore=NOT_COPIED, symlinks=True)
            if (root / ".venv").exists():
                (copy / ".venv").symlink_to((root / ".venv").resolve())

    def remove(self) -> None:
        for copy in self.all:
            shutil.rmtree(copy, ignore_errors=True)


@contextlib.contextmanager
def changed_file(path: Path, text: str) -> Iterator[None]:
    """Within, the file has this text, and none of its bytecode is found."""
    before = path.read_bytes()
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()  # its name is a date in seconds and a size: both may be the same
    path.write_text(text)
    try:
        yield
    finally:
        path.write_bytes(before)


class Runner:
    """Forks one process for each job; a context manager that leaves none behind."""

    def __init__(self, preload: tuple[str, ...]) -> None:
        for name in preload:
            importlib.import_module(name)
        self._running: dict[int, tuple[Job, float]] = {}

    def __enter__(self) -> Runner:
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            self._end(process)
        self._running.clear()
        self._sweep()

    @property
    def running(self) -> int:
        return len(self._running)

    def start(self, job: Job, *, write_bytecode: bool = False) -> int:
        """Fork; returns the process's id."""
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            _run(job, write_bytecode)
        self._running[process] = (job, time.monotonic())
        return process

    def wait(self) -> tuple[int, int | None, float]:
        """Wait for one job: its process's id, pytest's status (None: out of time), seconds."""
        while True:
            now = time.monotonic()
            for process, (job, begin) in list(self._running.items()):
                late = now - begin > job.limit_s
                if late:
                    self._end(process)
                    status = None
                else:
                    found, code = os.waitpid(process, os.WNOHANG)
                    if not found:
                        continue
                    status = os.waitstatus_to_exitcode(code)
                del self._running[process]
                self._sweep()
                return process, status, now - begin
            time.sleep(0.02)

    def _end(self, process: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)

    def _sweep(self) -> None:
        """End what trials have started and left."""
        while left := [c for c in psutil.Process().children() if c.pid not in self._running]:
            for child in left:
                child.kill()
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, 0)


def _run(job: Job, write_bytecode: bool) -> NoReturn:
    """Be the child: run pytest in the copy and end with its status."""
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with job.log.open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.chdir(job.copy)
        os.environ["PYTHONPATH"] = str(job.copy)
        sys.dont_write_bytecode = not write_bytecode
        if not write_bytecode:
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.path[:0] = [str(job.copy)]
        _forget_ours()
        import pytest

        temporary = f"--basetemp={job.copy.parent / 'tmp'}-{job.copy.name}"
        arguments = [*PYTEST, *REWRITTEN, temporary, f"--rootdir={job.copy}", *job.more]
        if write_bytecode:
            arguments.remove("-x")  # a clean run: all that fails is to be known
        status = NOTHING
        for files in job.stages:
            status = int(pytest.main([*arguments, *files], plugins=[job.plugin]))
            if status not in (PASSED, NOTHING):
                break
        sys.stdout.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(3)
    os._exit(status)


OURS = ("darts", "engines", "launch", "learner", "pipeline", "tests", "scripts")


def _forget_ours() -> None:
    """The copy's modules are to be imported, not the checkout's."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]


def outcome_of(status: int | None) -> Outcome:
    """Return what pytest's status says of a mutant.

    Raises RuntimeError if pytest could not do its work.
    """
    if status is None:
        return "timeout"
    if status in (PASSED, NOTHING):  # or it has changed what tests there are
        return "survived"
    if status in (FAILED, INTERRUPTED) or status < 0:  # or died of a signal
        return "killed"
    raise RuntimeError(f"pytest ended with status {status}")


def failed_test(note: Path) -> str:
    """Return the test that ran last, "" if the mutant could not even be imported."""
    found: Mapping[str, str] = json.loads(note.read_text()) if note.exists() else {}
    return found.get("test", "")
