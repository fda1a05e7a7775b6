"""Text for a terminal on a path of its own: what shows a run never ends it and never holds it up.

Text goes into a queue of bounded length; a thread writes it. A reader that stands still, a full
disk, a pipe whose reader has left or a terminal that was closed cost the text and nothing else.
The loss is told once, in a file that `tell_losses_in` names, and counted in the text itself when
there is room again. Nothing here raises, and nothing waits but the end, for a limited time.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 1 << 20
"""Text that waits for a reader; an hour of a run's steps are 300 KB."""
PATIENCE_S = 2.0
"""How long the end waits for a reader that takes nothing."""
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)  # it does not come back
_RETRY_S = 1.0


class BoundedOutput(io.TextIOBase):
    """Stands for `sys.stdout` or `sys.stderr`; `close_within` at the end."""

    def __init__(self, descriptor: int, encoding: str) -> None:
        self._descriptor, self._encoding = descriptor, encoding
        self._queue: deque[bytes] = deque()
        self._bytes = 0  # in the queue
        self._left_out = 0  # texts since the last that was written
        self._gone = self._ending = False
        self._moved = time.monotonic()
        self._change = threading.Condition()
        self._told: Path | None = None
        self._lost = ""  # why, until it has been told
        self._was_told = False
        self._thread: threading.Thread | None = None

    # --- as a text file ------------------------------------------------------------------

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        data = text.encode(self._encoding, "backslashreplace")
        with self._change:
            if self._gone or not data:
                return len(text)
            if self._bytes + len(data) > MOST_BYTES:
                self._left_out += 1
                self._lose("nobody reads it")
                return len(text)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="output", daemon=True)
                self._thread.start()
            self._queue.append(data)
            self._bytes += len(data)
            self._change.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing: a thread writes, and nobody waits for it."""

    def close_within(self, patience_s: float = PATIENCE_S) -> None:
        """Wait for what is queued, as long as any of it moves, then give up the rest."""
        with self._change:
            self._moved = time.monotonic()
            while self._queue and not self._gone:
                left = self._moved + patience_s - time.monotonic()
                if left <= 0:
                    self._lose("nobody reads it")
                    break
                self._change.wait(left)
            self._ending = True
            self._change.notify_all()

    def tell_losses_in(self, path: Path) -> None:
        """Name the file that hears of a loss; also of one that has happened already."""
        with self._change:
            self._told = path
            if self._lost:
                self._lose(self._lost)

    # --- the thread ----------------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            with self._change:
                while not self._queue and not self._ending:
                    self._change.wait()
                if not self._queue:
                    return
                data = self._queue[0]
            written = self._written(data)
            with self._change:
                if written < 0:
                    if self._gone or self._ending:
                        self._queue.clear()
                        self._bytes = 0
                        self._change.notify_all()
                        return
                    self._change.wait(_RETRY_S)
                    continue
                self._moved = time.monotonic()
                self._bytes -= written
                if written < len(data):
                    self._queue[0] = data[written:]
                else:
                    self._queue.popleft()
                if self._left_out and not self._queue:
                    note = f"  ! {self._left_out} lines are missing here: nobody read them\n"
                    self._queue.append(note.encode())
                    self._bytes += len(note)
                    self._left_out = 0
                self._change.notify_all()

    def _written(self, data: bytes) -> int:
        """Bytes that were written; -1 after an error, which may pass unless `_gone` is set."""
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # somebody has made the terminal non-blocking
            time.sleep(0.05)
            return 0
        except OSError as error:
            with self._change:
                self._gone = self._gone or error.errno in _GONE
                self._lose(error.strerror or str(error))
            return -1

    def _lose(self, why: str) -> None:
        self._lost = why
        if self._told is None or self._was_told:
            return
        self._was_told = True
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} what is shown of the run is lost: {why}; the "
        with contextlib.suppress(OSError), self._told.open("a", encoding="utf-8") as file:
            file.write(f"{line}run goes on: see darts top\n")


@contextlib.contextmanager
def bounded_output() -> Iterator[None]:
    """Has `sys.stdout` and `sys.stderr` never wait nor fail, where they are the process's own."""
    before, ours = (sys.stdout, sys.stderr), list[BoundedOutput]()
    for name, own in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        current = getattr(sys, name)
        if current is None:  # closed by who started us
            setattr(sys, name, io.StringIO())
        elif current is own and (made := _of(current)) is not None:
            ours.append(made)
            setattr(sys, name, made)
    try:
        yield
    finally:
        for output in ours:
            output.close_within()
        sys.stdout, sys.stderr = before


def _of(stream: io.TextIOBase | object) -> BoundedOutput | None:
    try:
        descriptor: int = stream.fileno()  # type: ignore[attr-defined]
    except (OSError, ValueError, AttributeError):
        return None
    return BoundedOutput(descriptor, getattr(stream, "encoding", None) or "utf-8")


def tell_losses_in(path: Path) -> None:
    """Names the file that hears of losses of this process's output, if it is bounded."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, BoundedOutput):
            stream.tell_losses_in(path)
