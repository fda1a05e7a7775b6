"""Makes directories that only this user can enter, for sockets, weights and runs, and opens a
run's folder to one group of the system where a setting says so."""

from __future__ import annotations

import contextlib
import grp
import os
import stat
from collections.abc import Collection
from pathlib import Path

UMASK = 0o077
"""Umask of every process of a run: its files are for their owner only."""
_GROUP_UMASK = 0o027
_OPEN_DIRECTORY = 0o2750  # what is made in it belongs to the group, too


def is_ours(directory: Path) -> bool:
    """Return True for a directory of this user that is not a link."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def make_private(directory: Path) -> None:
    """Make a directory for this user only, or close an existing one to others.

    Raises: PermissionError if it is another user's, or a link: its owner could read and
    replace our files.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_ours(directory):
        raise PermissionError(f"{directory}: belongs to another user, or is a link; remove it")
    directory.chmod(0o700)


def umask_of(group: str) -> int:
    """Return the umask of what shows a run: it is for its owner, or for one group as well."""
    return _GROUP_UMASK if group else UMASK


def look_up_group(group: str) -> int:
    """Return the number of a group by its name or number. Raises KeyError or ValueError."""
    return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid


def group_number(group: str) -> int:
    """Return the number of a group by its name or number. Raises PermissionError if there is none
    or this user is not in it: the system would not let it give files to that group."""
    try:
        number = look_up_group(group)
    except (KeyError, ValueError):
        raise PermissionError(f"{group}: no group of this machine; `groups` lists yours") from None
    if os.geteuid() != 0 and number not in {os.getegid(), *os.getgroups()}:
        raise PermissionError(f"{group}: you are not in this group; `groups` lists yours")
    return number


def open_to_group(directory: Path, number: int, closed: Collection[str]) -> None:
    """Let a group read a directory and everything in it but the names in `closed`, now and later.

    A file or directory in it that has been made for its owner alone on purpose stays so only if it
    is named there. Links are not followed. Raises OSError.
    """
    os.chown(directory, -1, number)
    directory.chmod(_OPEN_DIRECTORY)
    for path in directory.iterdir():
        if path.name in closed or path.is_symlink():
            continue
        with contextlib.suppress(FileNotFoundError):  # a draft that has got its name meanwhile
            if path.is_dir():
                open_to_group(path, number, closed)
            elif path.is_file():
                os.chown(path, -1, number)
                path.chmod(stat.S_IMODE(path.stat().st_mode) & ~stat.S_IRWXO | stat.S_IRGRP)


def closed_above(directory: Path, number: int) -> Path | None:
    """Return the first directory above this one that the group cannot pass; None: it can."""
    for above in reversed(directory.absolute().parents):
        found = above.stat()
        passes = stat.S_IXGRP if found.st_gid == number else stat.S_IXOTH
        if not found.st_mode & passes:
            return above
    return None
