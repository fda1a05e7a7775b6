"""Legs that wait for a slot, in the order in which they get one; and where memory has room for one.

Classes first: legs of lost engines; those whose next turn begins; parked ones, oldest version
first; new candidates. Among new candidates, and among others of one version, the oldest group
goes first, or the response that is predicted to have the most to come (`placement.order`): long
ones that begin last make the tail of a step. An entry whose leg has moved on is void.
Longest first is LPT, Graham 1969. Room by predicted memory is Past-Future's (ASPLOS 2025): an
engine takes a leg only if the peak of all that run there stays below its cache's size.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from pipeline.coordinator.engine_pool import EngineState
from pipeline.coordinator.groups import Trajectory, TrajectoryState
from pipeline.coordinator.length_forecast import peak_tokens
from pipeline.coordinator.state import CoordinatorState

LOST, CONTINUED, PARKED, QUEUED = range(4)
"""Order of the waiting: lower goes first."""

Entry = tuple[int, float, float, int, int]
"""Class, two keys within it, trajectory, leg."""
Request = tuple[float, float]
"""Tokens held by an engine for one response, and tokens to come."""


class WaitingLegs:
    def __init__(self, core: CoordinatorState) -> None:
        self._core = core
        self._longest_first = core.settings.placement_order == "longest"
        self._heap: list[Entry] = []
        self._by_age: list[Entry] = []  # the same, as they would go otherwise: to count
        self._running: dict[str, list[Request]] = {}  # engine -> what runs there, as of this moment
        self._refused: tuple[Entry, int, int] | None = None  # leg, idle slots and second

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, trajectory: Trajectory, order: int) -> None:
        queued = order == QUEUED
        age = trajectory.group if queued else (trajectory.versions or [0])[0]
        leg = (trajectory.id, trajectory.leg)
        entry: Entry = (order, age, 0.0, *leg)
        if self._longest_first:
            heapq.heappush(self._by_age, entry)
            to_come = self._expected(trajectory)
            entry = (order, -to_come, age, *leg) if queued else (order, age, -to_come, *leg)
        heapq.heappush(self._heap, entry)

    def _expected(self, trajectory: Trajectory) -> float:
        group = self._core.groups[trajectory.group]
        if group.kind != "train":
            return 0.0
        return self._core.forecast.expected(trajectory, group.prompt)

    def first(self) -> Trajectory | None:
        """The one whose turn it is; None: nobody waits."""
        return self._first_of(self._heap)

    def take(self, engine: EngineState) -> Trajectory:
        """The same, which is given a slot of this engine now."""
        first = self.first()
        assert first is not None
        if self._longest_first:
            self._core.stats.placed_sooner += self._first_of(self._by_age) is not first
        heapq.heappop(self._heap)
        if engine.name in self._running:
            self._running[engine.name].append(self._request(first))
        return first

    def _first_of(self, heap: list[Entry]) -> Trajectory | None:
        while heap:
            *_, trajectory, leg = heap[0]
            found = self._core.trajectories.get(trajectory)
            if found is not None and found.leg == leg and _waits(found):
                return found
            heapq.heappop(heap)
        return None

    # --- room by predicted memory -------------------------------------------------------

    def look_anew(self) -> None:
        """Responses have grown since slots were given last."""
        self._running.clear()

    def has_room(self, engine: EngineState, trajectory: Trajectory) -> bool:
        """Whether all that run there would stay below the cache's size, with this one too. An
        engine on which nothing runs takes any."""
        running = self._running.get(engine.name)
        if running is None:
            running = self._running[engine.name] = list(self._requests(engine))
        if not running:
            return True
        peak = peak_tokens([*running, self._request(trajectory)])
        return peak < self._core.settings.kv_tokens

    def _requests(self, engine: EngineState) -> Iterator[Request]:
        for id_, leg in engine.legs:
            found = self._core.trajectories.get(id_)
            if found is not None and found.leg == leg and found.state is TrajectoryState.RUNNING:
                yield self._request(found)

    def _request(self, member: Trajectory) -> Request:
        core, group = self._core, self._core.groups[member.group]
        prompt = 0  # of an evaluation: not known here
        if group.kind == "train":
            prompt = core.prompt_tokens[group.prompt]
            prompt += core.variant_tokens(group.prompt, member.variant)
        return prompt + member.held, core.forecast.drawn(member)

    def refused(self, idle: int) -> bool:
        """Whether the first one found no room, with as many idle slots, a moment ago."""
        return self._refused == self._mark(idle)

    def refuse(self, idle: int) -> None:
        """No engine with a free slot has room for the first one: it is asked again when a slot
        has become free, or a second later."""
        mark = self._mark(idle)
        if self._refused is None or self._refused[0] != mark[0]:
            self._core.stats.waited_for_memory += 1
        self._refused = mark

    def _mark(self, idle: int) -> tuple[Entry, int, int]:
        return self._heap[0], idle, int(self._core.now)


def _waits(trajectory: Trajectory) -> bool:
    return trajectory.state is TrajectoryState.QUEUED or (
        trajectory.state is TrajectoryState.PARKED and trajectory.parked_until == "slot"
    )
