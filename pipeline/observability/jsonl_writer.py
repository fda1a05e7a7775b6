"""Lines at the end of a file, whole and in their order, also where the disk is full for a while.

What finds no room is kept and written later; only past `MOST_KEPT` are new lines left out, and
counted. A line that is half on the disk is continued where it broke off.
"""

from __future__ import annotations

from io import FileIO
from pathlib import Path

MOST_KEPT = 16 << 20
"""Bytes that wait for room, of each file: about 40,000 groups of eight."""
_AT_ONCE = 8 << 10
"""Bytes after which lines do not wait for `flush`."""


class JsonlWriter:
    """Appends to one file; opened when its first lines are flushed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None  # opened by the first flush that can
        self._waiting = bytearray()
        self._end = path.stat().st_size if path.exists() else 0
        self.size = self._end
        """Of the file up to its last whole line, bytes."""
        self.lost = 0
        """Lines left out."""
        self.full = ""
        """Why lines wait for room; '': they do not."""

    def write(self, line: bytes) -> None:
        """One line, with its end."""
        if self.full and len(self._waiting) + len(line) > MOST_KEPT:
            self.lost += 1
            return
        self._waiting += line
        if len(self._waiting) >= _AT_ONCE and not self.full:
            self.flush()

    def flush(self) -> None:
        """Write what waits, as far as there is room; `full` tells."""
        self.full = ""
        try:
            while self._waiting:
                if self._file is None:
                    self._file = FileIO(self._path, "ab")
                written = self._file.write(self._waiting) or 0
                if whole := self._waiting.rfind(b"\n", 0, written) + 1:
                    self.size = self._end + whole
                self._end += written
                del self._waiting[:written]
        except OSError as error:
            self.full = error.strerror or str(error)

    def close(self) -> None:
        """The last try; what finds no room now is lost."""
        self.flush()
        self.lost += self._waiting.count(b"\n")
        if self._file is not None:
            self._file.close()
