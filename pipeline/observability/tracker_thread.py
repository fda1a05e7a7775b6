"""Keeps a tracker, which is somebody else's library, on a thread of its own, within limits.

It may wait for a network that is gone, for a disk that is full or for a thread of its own that has
died: for minutes at the start, in a run or at the end. The run waits for a limited time at the
start and at the end, and for nothing in between: figures queue up, and what goes wrong is told
once and leaves the tracker out. Only a refusal that comes at once (no such package, no login)
keeps a run from starting.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.observability.live_status import RunStatus
from pipeline.observability.prometheus import TrackerError

log = logging.getLogger("stage")

CONNECT_S = 5.0
"""How long the start of a run waits for a tracker that says neither yes nor no."""
CLOSE_S = 5.0
"""How long the end of a run waits for what is still to be sent."""
STUCK_S = 60.0
"""After so long in one call it is told that the tracker takes nothing."""
MOST_QUEUED = 10_000
"""Steps and evaluations that wait for a tracker; later ones are left out, and counted."""

MOST_TABLES = 100
"""Things that wait for a server from which on no more responses are added to them."""


class SlowTracker(Protocol):
    """A tracker that may wait as long as it likes."""

    def log_metrics(self, what: str, step: int, numbers: Mapping[str, float]) -> None: ...

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def close(self) -> None: ...


class TrackerThread:
    """Args:
    key: its setting, for messages.
    make: connects; raises TrackerError.
    needed: a refusal at once keeps the run from starting; else the run goes on without.
    """

    def __init__(self, key: str, make: Callable[[], SlowTracker], *, needed: bool = True) -> None:
        self._key, self._make = key, make
        self._queue: queue.Queue[Callable[[SlowTracker], None] | None]
        self._queue = queue.Queue(MOST_QUEUED)
        self._connected, self._ended = threading.Event(), threading.Event()
        self._refusal: TrackerError | None = None
        self._late = not needed
        self._left_out = 0
        self._called = 0.0  # since when it is in the present call; 0.0: it is in none
        self._told_stuck = False
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=key, daemon=True).start()
        if not self._connected.wait(CONNECT_S):
            self._late = True
            self._tell(f"has not answered for {CONNECT_S:g} s; the run goes on, its figures wait")
        elif self._refusal is not None and needed:
            raise self._refusal

    def log_metrics(self, what: str, step: int, numbers: Mapping[str, float]) -> None:
        copied = dict(numbers)
        self._put(lambda made: made.log_metrics(what, step, copied))

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows that wait for a server are few at most: texts are longer than figures."""
        if self._queue.qsize() < MOST_TABLES:
            self._put(lambda made: made.log_rollouts(step, rows))

    def _put(self, send: Callable[[SlowTracker], None]) -> None:
        if self._ended.is_set():
            return
        try:
            self._queue.put_nowait(send)
        except queue.Full:
            self._left_out += 1

    def log_status(self, now: RunStatus) -> None:
        """Nothing: its curves are over steps."""

    def close(self) -> None:
        """Wait for what is queued, for a limited time."""
        if self._ended.is_set():
            return
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        if not self._ended.wait(CLOSE_S):
            self._tell(f"has not taken everything within {CLOSE_S:g} s; the rest is left out")
        if self._left_out:
            self._tell(f"was too slow: {self._left_out} steps and evaluations were left out")

    def news(self) -> list[str]:
        """What is to be told to people since the last call."""
        called = self._called
        if called and not self._told_stuck and time.monotonic() - called > STUCK_S:
            self._told_stuck = True
            self._tell(f"has taken nothing for {STUCK_S:g} s; the run goes on, its figures wait")
        found: list[str] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._news.get_nowait())
        return found

    def _tell(self, text: str) -> None:
        log.warning("%s %s", self._key, text)
        self._news.put(f"{self._key}: {text}")

    def _run(self) -> None:
        try:
            made = self._make()
        except BaseException as error:  # somebody else's library; it may even want to exit
            refusal = error if isinstance(error, TrackerError) else TrackerError(
                f"{self._key}: {type(error).__name__}: {error!s:.500}; or run without it"
            )  # fmt: skip
            self._refusal = refusal
            if self._late:
                self._tell("is left out: " + str(refusal).removeprefix(f"{self._key}: "))
            self._ended.set()
            self._connected.set()  # last: who has waited for it finds the news
            return
        self._connected.set()
        try:
            while (item := self._queue.get()) is not None:
                self._called = time.monotonic()
                item(made)
                self._called = 0.0
            made.close()
        except BaseException as error:  # of its network, its disk, its server
            log.warning("%s", self._key, exc_info=error)
            self._tell(f"failed and gets no more figures: {type(error).__name__}: {error!s:.300}")
        finally:
            self._called = 0.0
            self._ended.set()
