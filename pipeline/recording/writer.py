"""Writes a recording while a run goes on: one file for each stage, for its owner only.

Entries gather in memory; they go to the disk as a block at every tick (about once a second), at
every step's end, and when 256 KiB have gathered. So a stage that is killed loses a second at most,
and a block that is cut off is seen by its length. A recording ends no run: when the disk is full,
or a value of a plug-in cannot be written, it stops there and says so once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.coordinator.events import AnyCommand, AnyEvent, StepDone, Tick
from pipeline.recording.frames import (
    FORMAT,
    MAGIC,
    Header,
    block_of,
    encode_value,
    entries_payload,
    entry_bytes,
)

_BLOCK_BYTES = 256 << 10
_CANNOT = (OSError, TypeError, ValueError, OverflowError)


class RecordingWriter:
    """One recording. Raises nothing that a disk or a plug-in's value may cause.

    Args:
        path: a new file.
        say: told once, if it has to stop, why.
    """

    def __init__(self, path: Path, header: Header, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._file: int | None = None
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self.size = 0
        """Bytes on the disk."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            self._write(MAGIC + bytes([FORMAT]) + block_of(encode_value(header)))
        except _CANNOT as error:
            self._stop(error)

    def record(
        self, now: float, event: AnyEvent, commands: Sequence[AnyCommand], fault: str = ""
    ) -> None:
        """What the coordinator heard and answered; `fault`: what it raised instead."""
        if self._file is None:
            return
        try:
            entry = entry_bytes(now, event, commands, fault)
            self._waiting.append(entry)
            self._waiting_bytes += len(entry)
            if self._waiting_bytes >= _BLOCK_BYTES or fault or isinstance(event, Tick | StepDone):
                self._flush()
        except _CANNOT as error:
            self._stop(error)

    def close(self) -> None:
        """Everything is on the disk."""
        try:
            self._flush()
            if self._file is not None:
                os.close(self._file)
                self._file = None
        except _CANNOT as error:
            self._stop(error)

    def _flush(self) -> None:
        if self._waiting and self._file is not None:
            waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
            self._write(block_of(entries_payload(waiting)))

    def _write(self, block: bytes) -> None:
        assert self._file is not None
        rest = memoryview(block)
        while rest:
            written = os.write(self._file, rest)
            self.size += written
            rest = rest[written:]

    def _stop(self, error: Exception) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._waiting = None, []
        self._say(f"{self._path}: the recording ends here, the run goes on: {error}")
