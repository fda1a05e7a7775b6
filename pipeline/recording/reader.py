"""Reads a recording, block by block, and says where it ends and why.

A file that was cut off (its stage was killed, the disk was full) is read as far as it is whole.
Anything else that is wrong raises RecordingError with file and offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.recording.frames import (
    FORMAT,
    HEAD_BYTES,
    MAGIC,
    Entry,
    Header,
    RecordingError,
    block_head,
    check_block,
    decode_entries,
    decode_header,
)
from pipeline.system.untrusted_files import open_regular


class Recording:
    """One file. `entries()` may be called again: it reads from the start.

    Raises: OSError, RecordingError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = ""
        """Why there is no more, once all entries were read; "": the file is whole."""
        with open_regular(path) as file:
            self._first = self._begin(file)
            payload = self._block(file)
            if payload is None:
                raise RecordingError(f"{path}:{self._first}: {self.end}; it holds no header")
            self.header = self._header(payload)
            self._first = file.tell()

    def entries(self) -> Iterator[Entry]:
        """All that are whole, in order."""
        self.end = ""
        with open_regular(self.path) as file:
            file.seek(self._first)
            while True:
                begin = file.tell()
                payload = self._block(file)
                if payload is None:
                    return
                try:
                    found = decode_entries(payload)
                except ValueError as error:
                    raise self._wrong(begin, f"a block of entries: {error}") from error
                yield from found

    def _begin(self, file: BinaryIO) -> int:
        head = file.read(len(MAGIC) + 1)
        if head[: len(MAGIC)] != MAGIC:
            raise self._wrong(0, "this is no recording of darts (debug.record: true makes one)")
        found = head[len(MAGIC) :]
        if found != bytes([FORMAT]):
            number = found[0] if found else "nothing"
            cure = "replay it with the version of darts that wrote it"
            raise self._wrong(
                len(MAGIC), f"a recording of format {number}, this darts reads {FORMAT}; {cure}"
            )
        return len(head)

    def _header(self, payload: bytes) -> Header:
        try:
            return decode_header(payload)
        except ValueError as error:
            raise self._wrong(self._first, f"the header: {error}") from error

    def _block(self, file: BinaryIO) -> bytes | None:
        """The next block; None at the end, and `end` says if it is the end of the run."""
        begin = file.tell()
        head = file.read(HEAD_BYTES)
        if not head:
            return None
        if len(head) == HEAD_BYTES:
            try:
                length, checksum = block_head(head)
                payload = file.read(length)
                if len(payload) == length:
                    check_block(payload, checksum)
                    return payload
            except ValueError as error:
                raise self._wrong(begin, f"a block: {error}") from error
        self.end = f"cut off in the block that begins at byte {begin}"
        return None

    def _wrong(self, offset: int, why: str) -> RecordingError:
        return RecordingError(f"{self.path}:{offset}: {why}")
