"""The order in which events reach the coordinator, and the time that it is told.

`AsTheyCome` is a run: arrival order and the monotonic clock. `pipeline.stage.rounds` is the other
one (`debug.ordered`), for tests that need the same run twice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from pipeline.config.schema import Config
from pipeline.config.trained import learner_ranks
from pipeline.coordinator.events import AnyCommand, AnyEvent
from pipeline.stage.rounds import Rounds


class Arrivals(Protocol):
    """Between whoever reports something and the coordinator."""

    def put(self, event: AnyEvent) -> None:
        """An event has happened."""
        ...

    def next(self) -> tuple[AnyEvent, float] | None:
        """The event to be handled now, and the time; None: wait for more."""
        ...

    def answered(self, commands: Sequence[AnyCommand]) -> None:
        """The coordinator's commands, before they are carried out."""
        ...

    def now(self) -> float:
        """The coordinator's clock, seconds."""
        ...

    def overdue(self, limit_s: float) -> str:
        """Returns what has been waited for longer than `limit_s` of real time, and no time limit
        of the coordinator's can end; '' for nothing."""
        ...


class AsTheyCome:
    """Arrival order and the monotonic clock."""

    def __init__(self) -> None:
        self._events: deque[AnyEvent] = deque()

    def put(self, event: AnyEvent) -> None:
        self._events.append(event)

    def next(self) -> tuple[AnyEvent, float] | None:
        return (self._events.popleft(), self.now()) if self._events else None

    def answered(self, commands: Sequence[AnyCommand]) -> None:
        del commands

    def now(self) -> float:
        return time.monotonic()

    def overdue(self, limit_s: float) -> str:
        del limit_s
        return ""


def arrivals_of(config: Config) -> Arrivals:
    """The one that the run's settings ask for."""
    if not config.debug.ordered:
        return AsTheyCome()
    return Rounds(config.engine.count, learner_ranks(config), config.engine.chunk_tokens)
