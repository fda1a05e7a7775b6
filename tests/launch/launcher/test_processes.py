"""Children end with their parent, whichever way it ends; and are counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from launch.launcher.environment import clean_environment
from launch.launcher.processes import Child, end_all
from tests.paths import ROOT


def until(what: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    """A child that runs this code, as a module found in a folder of the test's own."""
    children: list[Child] = []

    def make(code: str) -> Child:
        name = f"program{len(children)}"
        (tmp_path / f"{name}.py").write_text(code)
        environment = clean_environment() | {"PYTHONPATH": str(tmp_path)}
        child = Child(name, [name], tmp_path / f"{name}.log", environment)
        children.append(child)
        return child

    yield make
    end_all(children, 0.0)


SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPER
PARENT = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print(child.pid, flush=True)\nimport time; time.sleep(60)"
)


def up(child: Child) -> bool:
    return bool(child.tail())


def test_how_a_child_ended_is_said_in_words(program: Callable[[str], Child]) -> None:
    fine, wrong, killed = program("pass"), program("raise SystemExit(3)"), program(SLEEPER)
    assert fine.exit_text() is None, "it has not started"
    for child in (fine, wrong, killed):
        child.start()
    until(lambda: up(killed))
    killed.signal_all(signal.SIGKILL)
    until(lambda: fine.exit_text() and wrong.exit_text() and killed.exit_text())
    assert [c.exit_text() for c in (fine, wrong, killed)] == [
        "exit 0",
        "exit 3",
        "killed by SIGKILL",
    ]


def test_an_end_is_collected_once_and_starts_are_counted(program: Callable[[str], Child]) -> None:
    child = program("print('hello')")
    for start in (1, 2):
        child.start()
        assert child.starts == start
        until(child.exit_text)
        assert child.take_exit() == "exit 0"
        assert child.take_exit() is None
        assert (child.running, child.pid) == (False, 0)
    assert child.tail() == "hello", "of its last start"
    assert child.log.read_text() == "hello\nhello\n", "its log goes on"


def test_a_child_that_has_run_for_long_begins_to_count_anew(
    program: Callable[[str], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    child = program("pass")
    for proved_s, starts in ((600.0, 1), (600.0, 2), (0.0, 1)):
        monkeypatch.setattr("launch.launcher.processes.STABLE_S", proved_s)
        child.start()
        until(child.exit_text)
        child.take_exit()
        assert child.starts == starts


def test_the_tail_of_a_log_is_its_last_lines(program: Callable[[str], Child]) -> None:
    child = program("print(*range(100), sep='\\n')")
    assert child.tail() == ""
    child.start()
    until(child.exit_text)
    assert child.tail(3) == "97\n98\n99"


def test_the_tail_of_a_log_costs_no_more_than_its_end(program: Callable[[str], Child]) -> None:
    """A log may be longer than the memory; /dev/full is read without an end."""
    child = program("print(*('y' * 99 for _ in range(100_000)), sep='\\n')")
    child.start()
    until(child.exit_text)
    assert child.tail(2) == "\n".join(["y" * 99] * 2)
    assert len(child.tail(1_000_000)) < 1 << 17
    child.log = Path("/dev/full")
    assert child.tail() == ""


def test_a_child_leads_its_own_session_and_reads_nothing(program: Callable[[str], Child]) -> None:
    child = program("import os, sys; print(os.getsid(0), os.getpid(), repr(sys.stdin.read()))")
    child.start()
    until(child.exit_text)
    session, pid, read = child.tail().split()
    assert session == pid
    assert read == "''"


@pytest.mark.fault("a child ignores SIGTERM", part="people", by="process")
def test_end_all_kills_a_child_that_ignores_sigterm(program: Callable[[str], Child]) -> None:
    """Promise: it is killed after the grace.
    Bound: 10 s at a grace of 0.1 s.
    """
    stubborn = program(STUBBORN)
    stubborn.start()
    until(lambda: up(stubborn))
    begun = time.monotonic()
    end_all([stubborn], grace_s=0.1)
    assert stubborn.exit_text() == "killed by SIGKILL"
    assert time.monotonic() - begun < 10.0


def test_end_all_lets_those_end_who_do_so_by_themselves(program: Callable[[str], Child]) -> None:
    child = program("print('up', flush=True)\nimport time; time.sleep(0.5); raise SystemExit(7)")
    child.start()
    until(lambda: up(child))
    end_all([child], grace_s=20.0)
    assert child.exit_text() == "exit 7"


def test_end_all_reaps_a_child_whose_first_thread_ends_before_the_others(
    program: Callable[[str], Child],
) -> None:
    first_ends = "print('up', flush=True)\nctypes.CDLL(None).syscall(60, 0)  # this thread's exit"
    code = (
        "import ctypes, os, threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(2.5), os._exit(5))).start()\n"
    )
    child = program(code + first_ends)
    child.start()
    until(lambda: gone(child.pid))
    assert child.running, "its first thread is a zombie, it is none"
    end_all([child], grace_s=20.0)
    assert child.exit_text() == "exit 5"


@pytest.mark.fault("a child leaves a process of its own behind", part="people", by="process")
def test_end_all_ends_what_a_child_has_started(program: Callable[[str], Child]) -> None:
    """Promise: that one ends too.
    Bound: 20 s.
    """
    child = program(PARENT)
    child.start()
    until(lambda: up(child))
    grandchild = int(child.tail())
    end_all([child], grace_s=0.0)
    until(lambda: gone(grandchild))


@pytest.mark.fault("the launcher is killed", part="people", by="process")
def test_a_child_dies_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    """Promise: its child ends.
    Bound: 20 s.
    """
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from launch.launcher.environment import clean_environment\n"
        "from launch.launcher.processes import Child\n"
        "environment = clean_environment() | {'PYTHONPATH': sys.argv[1]}\n"
        "child = Child('c', ['sleeper'], Path(sys.argv[1], 'log'), environment)\n"
        "child.start()\nprint(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    try:
        until(lambda: (tmp_path / "log").read_text())
        launcher.kill()
        launcher.wait()
        until(lambda: gone(pid))
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)


def test_variables_of_torchrun_do_not_reach_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    for name in (*foreign, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    environment = clean_environment()
    assert not set(environment) & {*foreign, "OMP_NUM_THREADS"}
    assert environment["HF_HUB_OFFLINE"] == "1"
