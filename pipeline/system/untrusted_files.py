"""Reads files that somebody else wrote, or that may be damaged, within limits of size and depth.

A path, or bytes and their place -> a value, or `UnreadableFile` with place, what was found and the
rule. Nothing else leaves these functions, whatever is in the file: neither a decoder's own errors
nor those of the disk. Every reader of a model's, a user's or a run's files uses them, and says in
its own words what is to be done.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast, overload

import msgspec

MOST_BYTES = 64 << 20
"""Largest file that is read as a whole; the largest of a model (a tokenizer's) have 40 MB."""
MOST_DEPTH = 64
"""Deepest nesting of lists and objects: what walks through a value may call itself."""
BROKEN = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError, MemoryError)
"""What decoders raise for bytes that they cannot read: bad syntax, text that is not UTF-8, deep
nesting, numbers out of range."""

T = TypeVar("T")


class UnreadableFile(ValueError):
    """A file cannot be read, or is not what it should be.

    `where` is its place, `why` what was found and the rule; `missing`: there is no such file.
    """

    def __init__(self, where: object, why: str, *, missing: bool = False) -> None:
        super().__init__(f"{where}: {why}")
        self.where, self.why, self.missing = str(where), why, missing


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. A pipe, a device or a directory is refused, not waited for.

    Raises: OSError, which says so.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "found no regular file, expected one", str(path))
    return open(descriptor, "rb")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a regular file of at most `most` bytes. Raises UnreadableFile."""
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
    except FileNotFoundError as error:
        raise UnreadableFile(path, "no such file", missing=True) from error
    except OSError as error:
        raise UnreadableFile(path, f"cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise UnreadableFile(path, f"found more than {most} bytes, the most that are read")
    return content


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Read a file in UTF-8. Raises UnreadableFile."""
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        why = f"found text that is not UTF-8 at byte {error.start}; save it as UTF-8"
        raise UnreadableFile(path, why) from error


@overload
def read_json(path: Path, *, most: int = ...) -> Any: ...
@overload
def read_json(path: Path, kind: type[T], *, most: int = ...) -> T: ...
def read_json(path: Path, kind: Any = Any, *, most: int = MOST_BYTES) -> Any:
    """Read a JSON file as `kind`. Raises UnreadableFile."""
    return decode_json(read_bytes(path, most), path, kind)


def decode_json(content: bytes, where: object, kind: Any = Any) -> Any:
    """Decode JSON in UTF-8, nested at most `MOST_DEPTH` deep. Raises UnreadableFile."""
    found = _decoded(lambda: msgspec.json.decode(content, type=kind), where, "JSON")
    if kind is Any or getattr(kind, "__origin__", None) is dict:
        check_depth(found, where)
    return found


def decode_msgpack(content: bytes, where: object, kind: type[T]) -> T:
    """Decode msgpack as `kind`. Raises UnreadableFile."""
    return _decoded(lambda: msgspec.msgpack.decode(content, type=kind), where, "what was written")


def _decoded(decode: Callable[[], T], where: object, what: str) -> T:
    try:
        return decode()
    except RecursionError as error:
        raise UnreadableFile(where, f"nested more than {MOST_DEPTH} deep") from error
    except UnicodeDecodeError as error:
        raise UnreadableFile(where, f"not {what}: its text is not UTF-8") from error
    except BROKEN as error:
        raise UnreadableFile(where, f"not {what}: {error}") from error


def check_depth(value: object, where: object) -> None:
    """Raise UnreadableFile if lists and objects are nested more than `MOST_DEPTH` deep."""
    level: list[object] = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise UnreadableFile(where, f"nested more than {MOST_DEPTH} deep")


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from cast(dict[object, object], value).values()
    elif isinstance(value, list):
        yield from cast(list[object], value)


def words(value: object) -> str:
    """A value as text, or '' if it is none: for keys that a file may have filled with anything."""
    return value if isinstance(value, str) else ""
