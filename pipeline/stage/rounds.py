"""A live run in an order that does not depend on time (`debug.ordered`).

Events are handed over in rounds. A round waits until everything that is due has come: of each
running leg its next `chunk_tokens` tokens, of each request its answer (reward, environment,
learner rank, weights, checkpoint), of each engine that is missing its join. Then it is handed over
in a fixed order, and 0.1 s of a logical clock pass. What an engine or a peer did beyond that waits
for a later round, so how fast they are shows nowhere; what they say of their own clocks is left
out. Invariant: the same answers give the same rounds, whenever they come.

A lost peer, Ctrl-C and what nobody asked for are handed over at once: they end waits, and such a
run is not one of the same order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pipeline.coordinator import events
from pipeline.coordinator.events import AnyCommand, AnyEvent
from pipeline.stage.leg_queue import LegQueue

ROUND_S = 0.1
"""Logical seconds of a round."""
_TICK_ROUNDS = 10
"""Rounds between ticks: one a logical second, as the stage's clock gives them."""

Answer = tuple[str, Any]
"""What is due: a kind, and the number or the name that the answer carries."""


class Rounds:
    """Args:
    engines, ranks: that the run has; it begins when all have joined.
    chunk_tokens: of a leg in one round.
    """

    def __init__(self, engines: int, ranks: int, chunk_tokens: int) -> None:
        self._engines, self._chunk_tokens = engines, chunk_tokens
        self._queue: deque[AnyEvent] = deque()
        self._due: dict[Answer, AnyEvent | None] = {
            ("learner", rank): None for rank in range(ranks)
        }
        self._due["published", 0] = None
        self._joins: list[events.EngineJoined] = []  # for the next round
        self._legs: dict[str, LegQueue] = {}  # engine -> its tokens, of all that are here
        self._ranks = ranks
        self._rounds = 0
        self._idle_s = 0.0
        self._moved = time.monotonic()

    # --- what the stage does with it ------------------------------------------------------

    def now(self) -> float:
        return self._rounds * ROUND_S + self._idle_s

    def put(self, event: AnyEvent) -> None:
        match event:
            case events.Tick():  # rounds bring their own; alone it moves the clock
                if not self._waits():
                    self._idle_s += 1.0
                    self._queue.append(event)
            case events.EngineJoined():
                self._joins.append(msgspec.structs.replace(event, latency=()))  # it was measured
                self._legs[event.engine] = LegQueue(event.engine, event.epoch)
            case events.Tokens():
                if (queue := self._legs.get(event.engine)) is not None:
                    queue.add(event)
            case events.EngineLost() | events.LearnerLost() | events.Halt():
                if isinstance(event, events.EngineLost):
                    self._forget_engine(event.engine)
                self._queue.append(event)
            case _:
                self._answer(event)

    def next(self) -> tuple[AnyEvent, float] | None:
        if not self._queue and not self._waits():
            self._queue.extend(self._round())
        if not self._queue:
            return None
        return self._queue.popleft(), self.now()

    def answered(self, commands: Sequence[AnyCommand]) -> None:
        for command in commands:
            self._note(command)

    def overdue(self, limit_s: float) -> str:
        waits = self._waits()
        if not waits or time.monotonic() - self._moved < limit_s:
            return ""
        return f"debug.ordered: nothing for {limit_s:.0f} s; a round waits for {', '.join(waits)}"

    # --- what is due ----------------------------------------------------------------------

    def _note(self, command: AnyCommand) -> None:
        """Enter what the command asks for; take out what is not wanted any more."""
        due = self._due
        match command:
            case events.Generate(engine=engine, trajectory=trajectory, leg=leg, prefix=prefix):
                if (queue := self._legs.get(engine)) is not None:  # else: it is lost
                    queue.begin((trajectory, leg), len(prefix) // 4)
            case events.AbortLegs(engine=engine, legs=legs):
                if (queue := self._legs.get(engine)) is not None:
                    queue.abort(legs)
            case events.RequestReward(trajectory=trajectory):
                due["reward", trajectory] = None
            case events.CancelReward(trajectory=trajectory):
                due.pop(("reward", trajectory), None)
            case events.CallEnvironment(trajectory=trajectory):
                due["turn", trajectory] = None
            case events.CancelEnvironmentCall(trajectory=trajectory):
                due.pop(("turn", trajectory), None)
            case events.TrainGroup(rank=rank, group=group):
                due["group", (rank, group)] = None
            case events.ForgetGroup(rank=rank, group=group):
                due.pop(("group", (rank, group)), None)
            case events.CloseStep():
                due |= {("step", rank): None for rank in range(self._ranks)}
            case events.LoadWeights(engine=engine):
                due["weights", engine] = None
            case events.Checkpoint():
                due["checkpoint", 0] = None
            case _:
                pass

    def _answer(self, event: AnyEvent) -> None:
        key = _key_of(event)
        if key is None:
            self._queue.append(event)
        elif key in self._due:  # else: of something that is not wanted any more
            self._due[key] = _without_clocks(event)

    def _forget_engine(self, engine: str) -> None:
        self._legs.pop(engine, None)
        self._joins = [join for join in self._joins if join.engine != engine]
        self._due.pop(("weights", engine), None)

    def _waits(self) -> list[str]:
        """Names what a round still waits for."""
        missing = self._engines - len(self._legs)
        waits = [f"{missing} engines"] if missing > 0 else []
        waits += [f"{kind} {of}" for (kind, of), event in self._due.items() if event is None]
        for engine, queue in self._legs.items():
            waits += [f"leg {leg} of {engine}" for leg in queue.waits(self._chunk_tokens)]
        return waits

    # --- a round --------------------------------------------------------------------------

    def _round(self) -> Iterator[AnyEvent]:
        """Everything that is due, in its order; nothing, if nothing is."""
        due = sorted(self._due.items(), key=lambda item: (_ORDER.index(item[0][0]), item[0][1]))
        self._due = {}
        joins, self._joins = sorted(self._joins, key=lambda join: join.engine), []
        frames = [
            frame
            for engine, queue in sorted(self._legs.items())
            if (frame := queue.take_frame(self._chunk_tokens)) is not None
        ]
        if not (due or joins or frames):
            return
        self._moved = time.monotonic()
        self._rounds += 1
        yield from joins
        answers = [(_ORDER.index(kind), event) for (kind, _), event in due if event is not None]
        yield from (event for place, event in answers if place < _TOKENS)
        yield from frames
        yield from (event for place, event in answers if place > _TOKENS)
        if self._rounds % _TICK_ROUNDS == 0:
            yield events.Tick()


_ORDER = (
    *("learner", "published", "weights", "tokens", "reward", "turn", "group", "step"),
    "checkpoint",
)
"""Of the kinds within a round; within a kind by number or name."""
_TOKENS = _ORDER.index("tokens")


def _key_of(event: AnyEvent) -> Answer | None:
    """What the event is an answer to; None if nobody asks for such an event."""
    match event:
        case events.LearnerJoined(rank=rank):
            return "learner", rank
        case events.Published():
            return "published", 0
        case events.WeightsLoaded(engine=engine) | events.WeightsFailed(engine=engine):
            return "weights", engine
        case (
            events.RewardReady(trajectory=trajectory) | events.RewardMissing(trajectory=trajectory)
        ):
            return "reward", trajectory
        case events.TurnAnswered(trajectory=trajectory) | events.TurnFailed(trajectory=trajectory):
            return "turn", trajectory
        case (
            events.GroupTrained(rank=rank, group=group) | events.GroupFailed(rank=rank, group=group)
        ):
            return "group", (rank, group)
        case events.StepDone(rank=rank) | events.StepSkipped(rank=rank):
            return "step", rank
        case events.Checkpointed():
            return "checkpoint", 0
        case _:
            return None


def _without_clocks(event: AnyEvent) -> AnyEvent:
    """The event without what a peer measured with its clock: spans, and metrics in seconds."""
    match event:
        case events.RewardReady() | events.TurnAnswered():
            return msgspec.structs.replace(event, times=None)
        case events.GroupTrained(metrics=metrics) | events.StepDone(metrics=metrics):
            kept = {name: value for name, value in metrics.items() if not name.endswith("_s")}
            return msgspec.structs.replace(event, metrics=kept)
        case _:
            return event
