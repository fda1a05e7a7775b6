"""Engines, and of those that serve: how many slots are idle, and which engine is emptiest.

Kept leg by leg, so that a question costs the same with a thousand engines as
with one. An engine serves once it has proved the current version; a leg is
entered and taken out here and nowhere else.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from pipeline.coordinator.groups import IllegalTransition
from pipeline.hardware.latency_model import LatencyMeter

_SPARE = 64
"""Entries of the heap, beyond two for each engine, after which it is made anew."""

Leg = tuple[int, int]
"""Trajectory, and number of its leg."""


class EnginePhase(StrEnum):
    JOINED = "joined"  # no version is known that it could load
    LOADING = "loading"
    SERVING = "serving"  # it has proved the newest version
    LOST = "lost"


class EngineEvent(StrEnum):
    LOAD = "load"  # it is asked to load a version, for the first time or again
    PROVED = "proved"
    LOST = "lost"


ENGINE_TRANSITIONS: dict[EnginePhase, dict[EngineEvent, EnginePhase]] = {
    EnginePhase.JOINED: {
        EngineEvent.LOAD: EnginePhase.LOADING,
        EngineEvent.LOST: EnginePhase.LOST,
    },
    EnginePhase.LOADING: {
        EngineEvent.LOAD: EnginePhase.LOADING,
        EngineEvent.PROVED: EnginePhase.SERVING,
        EngineEvent.LOST: EnginePhase.LOST,
    },
    EnginePhase.SERVING: {
        EngineEvent.LOAD: EnginePhase.LOADING,
        EngineEvent.LOST: EnginePhase.LOST,
    },
    EnginePhase.LOST: {},
}


class EngineState(msgspec.Struct, kw_only=True):
    """The coordinator's record of one engine in its present epoch."""

    name: str
    epoch: int
    slots: int
    phase: EnginePhase = EnginePhase.JOINED
    next_sequence: int = 0
    sampled: int = 0  # by its own last in-band count
    version: int = -1  # proved; -1: none yet
    loading: int = -1  # asked to load, not yet proved
    loading_since: float = 0.0  # that version
    refusals: int = 0
    # leg -> when its newest token came, in the engine's own time
    legs: dict[Leg, float] = msgspec.field(default_factory=dict[Leg, float])
    ending: dict[Leg, float] = msgspec.field(
        default_factory=dict[Leg, float]
    )  # -> when it was aborted
    moved: float = 0.0  # when anything came of a leg, in its own time
    began_to_load: float = 0.0  # since when it has not served
    owes_since: float = 0.0  # since when it has not answered to a load
    held_up_s: float = 0.0  # by loads that are over
    meter: LatencyMeter = msgspec.field(default_factory=LatencyMeter)

    def own_time(self, now: float) -> float:
        """Seconds without those in which it loaded: nothing else is due of it then."""
        return (self.began_to_load if self.is_loading else now) - self.held_up_s

    @property
    def is_loading(self) -> bool:
        """It was asked to load a version that it has not proved."""
        return self.phase is EnginePhase.LOADING

    @property
    def oldest_abort(self) -> float:
        """Time of the oldest unanswered abort, in the engine's own time."""
        return next(iter(self.ending.values()))

    def advance(self, event: EngineEvent) -> None:
        """Move along the table. Raises IllegalTransition and changes nothing."""
        legal = ENGINE_TRANSITIONS[self.phase]
        if event not in legal:
            raise IllegalTransition(f"engine {self.name}", event, self.phase, legal)
        self.phase = legal[event]


class EnginePool:
    """Engines that serve the current version."""

    def __init__(self) -> None:
        self.serving: dict[str, EngineState] = {}
        self.slots = 0
        self.idle = 0  # slots without a leg
        self._knee = 0  # that `_below` was counted for
        self._below = 0  # idle slots of those up to the knee
        # (share of slots in use, name); an entry is void once its engine's share is another
        self._free: list[tuple[float, str]] = []

    def reset(self, serving: Iterable[EngineState]) -> None:
        """These serve now, and no others."""
        self.serving = {engine.name: engine for engine in serving}
        self.slots = sum(engine.slots for engine in self.serving.values())
        self.idle = self.slots - sum(len(engine.legs) for engine in self.serving.values())
        self._below = self._count_below()
        self._tidy()

    def admit(self, engine: EngineState) -> None:
        """It has proved the current version."""
        self.dismiss(engine)
        self.serving[engine.name] = engine
        self.slots += engine.slots
        self.idle += engine.slots - len(engine.legs)
        self._below += self._below_of(engine)
        self._offer(engine)

    def dismiss(self, engine: EngineState) -> None:
        """It is gone."""
        if self.serving.get(engine.name) is engine:
            del self.serving[engine.name]
            self.slots -= engine.slots
            self.idle -= engine.slots - len(engine.legs)
            self._below -= self._below_of(engine)

    def start(self, engine: EngineState, leg: Leg, now: float) -> None:
        """A leg takes a slot of a serving engine."""
        self._below -= self._below_of(engine)
        if not engine.legs:
            engine.moved = engine.own_time(now)
        engine.legs[leg] = engine.own_time(now)
        self._below += self._below_of(engine)
        self.idle -= 1
        self._offer(engine)

    def end(self, engine: EngineState, leg: Leg) -> None:
        """A leg's slot is free again, of whatever engine."""
        engine.ending.pop(leg, None)
        if self.serving.get(engine.name) is not engine:
            del engine.legs[leg]
            return
        self._below -= self._below_of(engine)
        del engine.legs[leg]
        self._below += self._below_of(engine)
        self.idle += 1
        self._offer(engine)

    def idle_below(self, knee: int) -> int:
        """Idle slots, of each engine those up to `knee` legs only."""
        if knee != self._knee:
            self._knee = knee
            self._below = self._count_below()
        return self._below

    def emptiest(self) -> EngineState | None:
        """The engine with the smallest share of its slots in use, ties by name; None: all full."""
        while self._free:
            share, name = self._free[0]
            engine = self.serving.get(name)
            if engine is not None and len(engine.legs) < engine.slots:
                if share == len(engine.legs) / engine.slots:
                    return engine
            heapq.heappop(self._free)
        return None

    def by_share(self) -> list[EngineState]:
        """Engines with a free slot in the order of `emptiest`; costs as much as there are."""
        free = (engine for engine in self.serving.values() if len(engine.legs) < engine.slots)
        return sorted(free, key=lambda engine: (len(engine.legs) / engine.slots, engine.name))

    def _below_of(self, engine: EngineState) -> int:
        return max(0, min(engine.slots, self._knee) - len(engine.legs))

    def _count_below(self) -> int:
        return sum(self._below_of(engine) for engine in self.serving.values())

    def _offer(self, engine: EngineState) -> None:
        """Enter its share as of now, if it has a free slot."""
        if len(engine.legs) < engine.slots:
            heapq.heappush(self._free, (len(engine.legs) / engine.slots, engine.name))
            if len(self._free) > 2 * len(self.serving) + _SPARE:
                self._tidy()

    def _tidy(self) -> None:
        """Leave out what is void: one entry for each free engine."""
        self._free = [
            (len(engine.legs) / engine.slots, engine.name)
            for engine in self.serving.values()
            if len(engine.legs) < engine.slots
        ]
        heapq.heapify(self._free)
