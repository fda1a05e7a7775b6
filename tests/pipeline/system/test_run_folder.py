"""A run's folder has one holder, a proper name, and a number for each start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.system.run_folder import RunError, RunFolder, new_name

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.system.run_folder import RunFolder
run = RunFolder(Path(sys.argv[1]))
run.make_folders()
run.hold_lock()
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("name", ["a b", "é", "x" * 65, "a\nb", "..", "a;b"])
def test_a_name_that_could_hurt_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="a run's name has 1 to 64 letters"):
        RunFolder(tmp_path / name)


@pytest.mark.parametrize("name", ["quickstart", "run-2_b.1", "x" * 64])
def test_a_plain_name_is_fine(tmp_path: Path, name: str) -> None:
    RunFolder(tmp_path / name).make_folders()
    assert os.stat(tmp_path / name).st_mode & 0o777 == 0o700


@pytest.mark.fault("the holder of a folder is killed", part="people", by="process")
def test_a_second_holder_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    """Promise: while it lives a second one is refused with its number; its lock ends with it.
    Bound: at once.
    """
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "r")], stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == b"held\n"
        second = RunFolder(tmp_path / "r")
        second.make_folders()
        with pytest.raises(RunError, match=f"in use by process {first.pid}, running since"):
            second.hold_lock()
        first.send_signal(signal.SIGKILL)
        first.wait()
        second.hold_lock()  # the system frees the lock of the dead
        second.release_lock()
    finally:
        first.kill()
        first.wait()
        first.stdout.close()


def test_a_lock_given_back_can_be_taken_again(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "r"), RunFolder(tmp_path / "r")
    first.make_folders()
    first.hold_lock()
    with pytest.raises(RunError):
        second.hold_lock()
    first.release_lock()
    second.hold_lock()
    second.release_lock()


def test_every_start_has_a_higher_incarnation(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    run.make_folders()
    assert [RunFolder(tmp_path / "r").next_incarnation() for _ in range(3)] == [1, 2, 3]


def test_a_path_that_is_not_utf_8_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff") / "r"
    with pytest.raises(RunError, match="is not UTF-8.*choose another --out"):
        RunFolder(folder)


def test_a_new_name_is_the_first_free_one(tmp_path: Path) -> None:
    base = tmp_path / "quickstart"
    names: list[str] = []
    for _ in range(3):
        path = new_name(base)
        path.mkdir()
        names.append(path.name)
    assert names == ["quickstart", "quickstart-2", "quickstart-3"]
