"""Disk operations of a checkpoint, one at a time, so that a test can stop after any of them.

Nothing is durable before `fsync`: that of a file for its content, that of a directory for
the names in it. `System` is the real disk.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

log = logging.getLogger(__name__)
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EISDIR, errno.EBADF)
"""What file systems answer that cannot fsync, a directory mostly (CIFS, some FUSE, some drivers of
containers); others are errors of the disk (EIO) or of its room (ENOSPC, EDQUOT)."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError of the inside that names no file, as that of a write does, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file whole; text as UTF-8. Raises: OSError that names it."""
    with naming(path):
        path.write_bytes(content.encode() if isinstance(content, str) else content)


class Disk(Protocol):
    """The operations; each may raise OSError."""

    def mkdir(self, path: Path) -> None:
        """Make a new directory, for its owner only."""
        ...

    def create(self, path: Path) -> BinaryIO:
        """Make a new file, open for writing."""
        ...

    def fsync(self, path: Path) -> None:
        """Make the content of a file, or the names in a directory, durable. Never retry after an
        error: the system may have dropped the data, and would report success."""
        ...

    def rename(self, path: Path, to: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def rmdir(self, path: Path) -> None: ...


class System:
    """The disk of the machine. Its errors name the path."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def mkdir(self, path: Path) -> None:
        path.mkdir(mode=0o700)

    def create(self, path: Path) -> BinaryIO:
        return open(path, "xb")

    def fsync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            what = "a directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "a file"
            if error.errno not in _NO_FSYNC:
                raise OSError(error.errno, error.strerror, str(path)) from error
            if what not in self._warned:  # all is as durable as this file system has it
                self._warned.add(what)
                log.warning(
                    "%s: this file system cannot fsync %s (%s): after a loss of power the newest "
                    "checkpoint may be missing or damaged; an older one is taken then",
                    path,
                    what,
                    error.strerror,
                )
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
    """Write a new file and make its content durable, but not its name."""
    with naming(path), disk.create(path) as file:
        file.write(content)
    make_durable(disk, path)


def make_durable(disk: Disk, path: Path) -> None:
    """Make a written file durable, and writable by its owner only: a resume refuses files that
    others could write, whatever the umask."""
    path.chmod(path.stat().st_mode & ~OTHERS_WRITE)
    disk.fsync(path)


def remove_tree(disk: Disk, directory: Path) -> None:
    """Remove a directory and everything in it; links are not followed."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            remove_tree(disk, path)
        else:
            disk.unlink(path)
    disk.rmdir(directory)
