"""Makes directories that only this user can enter: for sockets, weights and runs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

UMASK = 0o077
"""Umask of every process of a run: its files are for their owner only."""


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
