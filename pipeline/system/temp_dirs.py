"""Directories outside of a run's folder, and who they belong to: so that the next start can
remove those whose owner was killed.

`darts-UID-PID-...` in the temporary directory and in memory, each with a file that says when its
owner was started, and among which processes: an id is given again, and elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.system.private_dirs import is_ours, make_private

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  only a 0700 directory of our own below it
_OWNER = ".owner"
_START = 19  # field of /proc/PID/stat after the name, which is in parentheses


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks since the boot; '' if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[_START]


def _world() -> str:
    """In which namespace this process's ids hold: containers may share memory and files."""
    return os.readlink("/proc/self/ns/pid")


def name_of(owner: int, tail: str) -> str:
    """Of a directory that belongs to process `owner`."""
    return f"darts-{os.getuid()}-{owner}-{tail}"


def own_directory(tail: str, base: Path | None = None, owner: int | None = None) -> Path:
    """A new 0700 directory of process `owner` (by default this one) below `base` (by default the
    temporary directory). Raises OSError."""
    name = name_of(owner or os.getpid(), f"{secrets.token_hex(4)}-{tail}")
    directory = (base or Path(tempfile.gettempdir())) / name
    directory.mkdir(mode=0o700)
    sign_owner(directory, owner or os.getpid())
    return directory


def shared_directory(owner: int, tail: str) -> Path:
    """The 0700 directory in memory that several children of `owner` know by its name.

    Raises: PermissionError if another user has made it first.
    """
    base = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    directory = base / name_of(owner, tail)
    make_private(directory)
    sign_owner(directory, owner)
    return directory


def sign_owner(directory: Path, owner: int) -> None:
    """Note whose it is."""
    (directory / _OWNER).write_text(f"{_world()} {_started(owner)}")


def remove_orphans(*more: Path) -> list[Path]:
    """Remove what belongs to processes that are gone (kill -9 of everything leaves it). Only this
    user's, and nothing of a process that lives or has not signed yet.

    Args:
        more: directories to look in, beside memory and the temporary directory.
    """
    removed: list[Path] = []
    for left in _left(more):
        pid = left.name.split("-")[2]
        if pid.isdigit() and _is_orphan(left, int(pid)):
            shutil.rmtree(left, ignore_errors=True)
            removed.append(left)
    return removed


def _left(more: Iterable[Path]) -> Iterator[Path]:
    for base in dict.fromkeys((SHARED_MEMORY, Path(tempfile.gettempdir()), *more)):
        for left in base.glob(f"darts-{os.getuid()}-*-*"):
            if is_ours(left):
                yield left


def _is_orphan(directory: Path, pid: int) -> bool:
    world = signed = ""
    with contextlib.suppress(OSError):
        world, _, signed = (directory / _OWNER).read_text().partition(" ")
    if world not in ("", _world()):
        return False  # nobody here can tell
    started = _started(pid)
    return not started or signed not in ("", started)
