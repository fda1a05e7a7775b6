"""What a killed run leaves outside of its folder, and that the next start removes it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.system import temp_dirs
from pipeline.system.temp_dirs import name_of, own_directory, remove_orphans, shared_directory

NOBODY = 65534
LEAVER = """
import sys, time, socket
from pathlib import Path
from pipeline.system.temp_dirs import own_directory
made = own_directory("run", Path(sys.argv[1]))
listening = socket.socket(socket.AF_UNIX)
listening.bind(str(made / "control"))
print(made, flush=True)
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both where memory is shared and where what is temporary goes."""
    monkeypatch.setattr(temp_dirs, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.fault(
    "a killed run leaves weights in memory and sockets behind", part="disk", by="process"
)
def test_what_a_killed_process_has_left_is_swept_at_the_next_start(place: Path) -> None:
    """Promise: while it lives nothing is touched; once it is killed, its directories are removed
    with the sockets and files in them.
    Bound: at the next start.
    """
    leaver = subprocess.Popen([sys.executable, "-c", LEAVER, str(place)], stdout=subprocess.PIPE)
    assert leaver.stdout is not None
    made = Path(leaver.stdout.readline().decode().strip())
    try:
        assert remove_orphans() == []
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    finally:
        leaver.send_signal(signal.SIGKILL)
        leaver.wait()
        leaver.stdout.close()
    assert remove_orphans() == [made]
    assert not made.exists()


def test_of_the_living_and_of_others_nothing_is_swept(place: Path) -> None:
    mine, shared = own_directory("run"), shared_directory(os.getppid(), "e0")
    unsigned = place / name_of(os.getpid(), "ab12-run")
    foreign = place / f"darts-{os.getuid() + 1}-{dead_pid()}-ab12-run"
    link = place / name_of(dead_pid(), "ab12-run")
    for directory in (unsigned, foreign):
        directory.mkdir()
    link.symlink_to(mine)
    assert remove_orphans() == []
    assert all(path.is_dir() for path in (mine, shared, unsigned, foreign, link))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_a_directory_of_our_name_that_belongs_to_somebody_else_is_left_alone(place: Path) -> None:
    theirs = place / name_of(dead_pid(), "ab12-run")
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    assert remove_orphans() == []
    assert theirs.is_dir()


def test_a_process_id_that_was_given_again_keeps_nothing_alive(place: Path) -> None:
    old, elsewhere = own_directory("old"), own_directory("elsewhere")
    world, _, started = (old / ".owner").read_text().partition(" ")
    (old / ".owner").write_text(f"{world} {int(started) - 1}")
    (elsewhere / ".owner").write_text(f"pid:[1] {int(started) - 1}")
    assert remove_orphans() == [old]
    assert elsewhere.is_dir(), "a container that shares our memory has processes of its own"


def test_a_directory_without_a_signature_ends_with_its_process(place: Path) -> None:
    left = place / name_of(dead_pid(), "ab12-run")
    left.mkdir()
    assert remove_orphans() == [left]


def test_what_was_left_below_a_run_is_swept_when_it_is_looked_at(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.mktemp("run")
    left = run / name_of(dead_pid(), "ab12-run")
    left.mkdir()
    assert remove_orphans() == []
    assert remove_orphans(run) == [left]
