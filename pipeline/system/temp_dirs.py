"""Makes directories outside the run's folder, and removes those whose owner was killed.

`darts-UID-PID-...` in the temporary directory and in memory, each with a file that holds the
owner's start time and pid namespace: pids are used again, and elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.system.durable_files import write_file
from pipeline.system.private_dirs import is_ours, make_private

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  only a 0700 directory of our own below it
_SHORT = Path("/tmp")  # noqa: S108  only a 0700 directory of our own below it
SOCKET_PATH = 107
"""Bytes of a Unix socket's path."""
_OWNER = ".owner"
_START = 19  # field of /proc/PID/stat, counted after the name in parentheses


def _started(pid: int) -> str:
    """Return a process's start time in kernel ticks since the boot; '' if it does not exist."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[_START]


def _pid_namespace() -> str:
    """Return this process's pid namespace: containers may share memory and files."""
    return os.readlink("/proc/self/ns/pid")


def process_mark(pid: int) -> str:
    """Return a text that tells this process from all others of the machine, also after its end,
    and over a restart of the machine; '' if there is no such process."""
    started = _started(pid)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{boot} {_pid_namespace()} {pid} {started}" if started else ""


def name_of(owner: int, tail: str) -> str:
    """Return the name of a directory that belongs to process `owner`."""
    return f"darts-{os.getuid()}-{owner}-{tail}"


def own_directory(tail: str, base: Path | None = None, owner: int | None = None) -> Path:
    """Make a 0700 directory of process `owner` (default: this one) in `base` (default: the
    temporary directory). Raises OSError that names it, and leaves none."""
    name = name_of(owner or os.getpid(), f"{secrets.token_hex(4)}-{tail}")
    directory = (base or Path(tempfile.gettempdir())) / name
    directory.mkdir(mode=0o700)
    try:
        sign_owner(directory, owner or os.getpid())
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return directory


def socket_directory() -> Path:
    """Make a 0700 directory of this process for sockets, whose paths may have 107 bytes: where the
    temporary directory is a long one (a cluster's, of a job), in the system's own.

    Raises: OSError.
    """
    base = Path(tempfile.gettempdir())
    longest = len(os.fsencode(base / name_of(1 << 22, "xxxxxxxx-run/control")))
    return own_directory("run", None if longest <= SOCKET_PATH else _SHORT)


def shared_directory(owner: int, tail: str) -> Path:
    """Make the 0700 directory in memory that children of `owner` share by its name.

    Raises: PermissionError if another user made it first.
    """
    writable = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK | os.X_OK)
    base = SHARED_MEMORY if writable else Path(tempfile.gettempdir())
    directory = base / name_of(owner, tail)
    make_private(directory)
    sign_owner(directory, owner)
    return directory


def sign_owner(directory: Path, owner: int) -> None:
    """Write down the owner of a directory."""
    write_file(directory / _OWNER, f"{_pid_namespace()} {_started(owner)}")


def remove_orphans(*more: Path) -> list[Path]:
    """Remove directories of processes that are gone, as after kill -9. Only this user's, and
    none of a process that lives or has not signed yet.

    Args:
        more: directories to search, beside memory and the temporary directory.
    """
    removed: list[Path] = []
    for left in _left(more):
        pid = left.name.split("-")[2]
        if pid.isdigit() and _is_orphan(left, int(pid)):
            shutil.rmtree(left, ignore_errors=True)
            removed.append(left)
    return removed


def _left(more: Iterable[Path]) -> Iterator[Path]:
    for base in dict.fromkeys((SHARED_MEMORY, Path(tempfile.gettempdir()), _SHORT, *more)):
        for left in base.glob(f"darts-{os.getuid()}-*-*"):
            if is_ours(left):
                yield left


def _is_orphan(directory: Path, pid: int) -> bool:
    namespace = signed = ""
    with contextlib.suppress(OSError):
        namespace, _, signed = (directory / _OWNER).read_text().partition(" ")
    if namespace not in ("", _pid_namespace()):
        return False  # unknown here
    started = _started(pid)
    return not started or signed not in ("", started)
