"""Directories that are this user's alone: for sockets, weights and runs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

UMASK = 0o077
"""Of every process of a run: what it writes is for its owner."""


def is_ours(directory: Path) -> bool:
    """Whether it is a directory of this user's, and no link to one."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def make_private(directory: Path) -> None:
    """Make it, or close an own one to all others.

    Raises: PermissionError if it is another user's, or a link: whoever made it first could
    read, and put in, what is meant for us.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_ours(directory):
        raise PermissionError(f"{directory}: another user's, or a link; remove it")
    directory.chmod(0o700)
