"""Whether a process was killed for its memory, and what is said of it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from launch.launcher.environment import clean_environment
from launch.launcher.oom import KILLED, MemoryWatch, own_groups, peak_bytes
from launch.launcher.processes import Child
from launch.torchrun.engine_supervisor import supervise
from tests.launch.launcher.test_processes import until

GIB = 1 << 30
COUNTS = {1: "memory.oom_control", 2: "memory.events"}
LIMITS = {1: "memory.limit_in_bytes", 2: "memory.max"}
HUNGRY = """
import os, pathlib, signal, time
block = bytearray(os.urandom(64 << 20))
time.sleep(1)
counts = pathlib.Path({counts!r})
counts.write_text(counts.read_text().replace("oom_kill 4", "oom_kill 5"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def group_of(folder: Path, kills: int, version: int = 2) -> Path:
    """A memory group as the kernel shows it, with a limit of 0.5 GiB."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COUNTS[version]).write_text(f"low 0\noom 3\noom_kill {kills}\n")
    (folder / LIMITS[version]).write_text(f"{GIB // 2}\n")
    return folder


@pytest.mark.fault("the kernel kills a process for its memory", part="everything", by="process")
@pytest.mark.parametrize("version", [1, 2])
def test_a_kill_that_the_kernel_counts_names_the_limit(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    version: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Promise: the line says that it was for its memory, the most that was seen of it, and the
    limit; a kill that the kernel does not count is told as somebody else's. (The test is the
    kernel: it kills the process and writes the counter.)
    Bound: at its end.
    """
    group = group_of(tmp_path / "group", 4, version)
    monkeypatch.setattr("launch.torchrun.engine_supervisor.own_groups", lambda: [group])
    (tmp_path / "hungry.py").write_text(HUNGRY.format(counts=str(group / COUNTS[version])))
    environment = clean_environment() | {"PYTHONPATH": str(tmp_path)}
    child = Child("e0", ["hungry"], tmp_path / "log", environment)
    assert supervise(child, 1, []) == 1
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "darts: e0 ended (killed by SIGKILL); the kernel killed it because memory ran out "
        "(peak seen: 0.1 of 0.5 GiB)"
    )
    assert "(killed by SIGKILL); not because of memory: the kernel counts no such kill" in second


def test_two_that_are_killed_for_memory_at_once_are_both_told_so(tmp_path: Path) -> None:
    watch = MemoryWatch([group_of(tmp_path, 3)])
    group_of(tmp_path, 5)
    said = [watch.explain_kill(KILLED, GIB) for _ in range(3)]
    assert ["killed it because memory ran out" in text for text in said] == [True, True, False]


@pytest.mark.fault("a process meets its limit of address space", part="everything", by="process")
def test_a_process_over_its_own_limit_ends_with_a_memory_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise: it ends by itself, and the line quotes the MemoryError from its log.
    Bound: at its end.
    """
    (tmp_path / "hungry.py").write_text(
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "block = bytearray(2 << 30)\n"
    )
    environment = clean_environment() | {"PYTHONPATH": str(tmp_path)}
    assert supervise(Child("e0", ["hungry"], tmp_path / "log", environment), 0, []) == 1
    said = capsys.readouterr().out
    assert "darts: e0 ended (exit 1); its log: " in said
    assert said.rstrip().endswith("MemoryError")


def test_where_nobody_counts_it_is_said_that_it_may_be_so() -> None:
    said = MemoryWatch([]).explain_kill(KILLED, 3 * GIB)
    assert said.startswith("; the kernel does this when memory runs out (peak seen: 3.0 of ")


@pytest.mark.parametrize("how", ["exit 1", "killed by SIGTERM", "killed by SIGSEGV"])
def test_of_other_ends_nothing_is_said(tmp_path: Path, how: str) -> None:
    watch = MemoryWatch([group_of(tmp_path, 0)])
    group_of(tmp_path, 1)
    assert watch.explain_kill(how, GIB) == ""


def test_a_child_that_we_have_killed_was_not_killed_for_its_memory(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text("import time; print('up', flush=True); time.sleep(60)")
    environment = clean_environment() | {"PYTHONPATH": str(tmp_path)}
    child = Child("e0", ["sleeper"], tmp_path / "log", environment)
    child.start()
    until(lambda: child.tail())
    assert peak_bytes(child.pid) > 1 << 20
    child.signal_all(signal.SIGKILL)
    child.signal_all(signal.SIGTERM)  # it may not be gone yet when all are asked to leave
    until(child.exit_text)
    assert child.memory_note(child.exit_text() or "", MemoryWatch([])) == ""


@pytest.mark.parametrize(
    "line,inside",
    [
        ("0::/", ""),
        ("0::/a/b", "a/b"),
        ("4:memory:/job", "memory/job"),
        ("4:memory:/gone", "memory"),
    ],
)
def test_the_memory_group_is_found_in_either_version(
    tmp_path: Path, line: str, inside: str
) -> None:
    root = tmp_path / "cgroup"
    group_of(root / inside, 0, 1 if "memory" in inside else 2)
    memberships = tmp_path / "memberships"
    memberships.write_text(f"9:name=systemd:/x\n{line}\n")
    assert own_groups(root, memberships)[0] == root / inside


def test_without_groups_nothing_is_found(tmp_path: Path) -> None:
    assert own_groups(tmp_path, tmp_path / "none") == []
