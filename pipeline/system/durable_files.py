"""What a checkpoint does to the disk, one operation at a time, so that a test can cut it short.

Nothing is on disk for good before `fsync`: of a file for its content, of a
directory for the names in it. `System` is the real one.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Protocol

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Disk(Protocol):
    """Every operation raises OSError."""

    def mkdir(self, path: Path) -> None:
        """A new directory, for its owner alone."""
        ...

    def create(self, path: Path) -> BinaryIO:
        """A new file, open for writing."""
        ...

    def fsync(self, path: Path) -> None:
        """Make the content of a file, or the names in a directory, durable. After an error they
        never are: the system may have dropped what it could not write, and succeed next time."""
        ...

    def rename(self, path: Path, to: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def rmdir(self, path: Path) -> None: ...


class System:
    """The disk of the machine."""

    def mkdir(self, path: Path) -> None:
        path.mkdir(mode=0o700)

    def create(self, path: Path) -> BinaryIO:
        return open(path, "xb")

    def fsync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, path: Path, to: Path) -> None:
        path.rename(to)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def rmdir(self, path: Path) -> None:
        path.rmdir()


SYSTEM = System()


def write_durably(disk: Disk, path: Path, content: bytes) -> None:
    """A new file, durable but for its name."""
    with disk.create(path) as file:
        file.write(content)
    make_durable(disk, path)


def make_durable(disk: Disk, path: Path) -> None:
    """Make a file that somebody has written durable, and nobody else's to change: whatever the
    umask, what others could write is not resumed from."""
    path.chmod(path.stat().st_mode & ~OTHERS_WRITE)
    disk.fsync(path)


def remove_tree(disk: Disk, directory: Path) -> None:
    """A directory and all that is in it; links are not followed."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            remove_tree(disk, path)
        else:
            disk.unlink(path)
    disk.rmdir(directory)
