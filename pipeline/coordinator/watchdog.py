"""No wait lasts for ever: what has stood still past its limit is found, and the run acts.

Once a tick: a coordinator -> `Overdue` waits, by the table in `pipeline.coordinator.timeouts`; the
coordinator carries each row's action out. Costs the same with 65,536 open groups as with
a hundred: it looks at engines, at the oldest reward, at ranks, and at the legs of an
engine only once one of them may be due. Invariant: whatever is waited for has a row, or
waits for something that has one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from pipeline.coordinator.engine_pool import EngineState, Leg
from pipeline.coordinator.timeouts import RULES, OverdueAction, WaitKind, limit_s
from pipeline.coordinator.waits import waits

if TYPE_CHECKING:
    from pipeline.coordinator.coordinator import Coordinator

_LATE_S = 5.0
"""A tick so much later than the one before: the stage itself stood still, nobody else is to
blame for it, and nothing is done until as much time has passed again."""


class Overdue(msgspec.Struct, frozen=True, kw_only=True):
    """A wait past its limit; the names of those that the action needs."""

    kind: WaitKind
    line: str
    engine: str = ""
    trajectory: int = -1
    rank: int = -1


class Watchdog:
    """`acted`: how often, by kind of wait.

    Args:
        actions: what carries out each action of the table.
    """

    def __init__(
        self, coordinator: Coordinator, actions: Mapping[OverdueAction, Callable[[Overdue], None]]
    ) -> None:
        self._coordinator, self._actions = coordinator, actions
        self.acted: Counter[str] = Counter()
        self._limits = coordinator.core.settings.limits
        self._ticked = self._quiet_until = -math.inf
        self.rewarded = 0.0  # when a reward was answered last
        self._owing: dict[int, float] = {}  # rank -> since when it owes an answer
        self._look: dict[tuple[str, int], float] = {}  # engine, epoch -> when a leg may be due

    def rank_answered(self, rank: int) -> None:
        """It owes the next answer from now on, if it owes any."""
        self._owing.pop(rank, None)

    def reward_answered(self) -> None:
        """Of whichever trajectory: the workers work."""
        self.rewarded = self._coordinator.core.now

    def tick(self) -> None:
        """Act on everything that is overdue."""
        now = self._coordinator.core.now
        late, self._ticked = now - self._ticked, now
        if _LATE_S < late < math.inf:
            self._quiet_until = max(now, self._quiet_until) + late
        self._note_debts(now)
        if now < self._quiet_until:
            return
        for overdue in list(self._overdue(now)):
            self.acted[overdue.kind.value] += 1
            self._actions[RULES[overdue.kind].action](overdue)

    def owing_since(self, rank: int) -> float:
        """Since when this rank has owed an answer and given none; now, if it owes none."""
        return self._owing.get(rank, self._coordinator.core.now)

    def oldest_debt(self) -> float:
        """Of all ranks."""
        return min(self._owing.values(), default=self._coordinator.core.now)

    # --- what is overdue ----------------------------------------------------------------

    def _past(self, kind: WaitKind, seconds: float) -> bool:
        return seconds > limit_s(kind, self._limits)

    def _overdue(self, now: float) -> Iterator[Overdue]:
        """All of it, at most one wait for each engine."""
        coordinator = self._coordinator
        yield from self._starting(now)
        for engine in coordinator.scheduler.engines.values():
            yield from self._of_engine(engine, now)
        yield from self._rewards(now)
        yield from self._rollouts(now)
        for rank, since in self._owing.items():
            if self._past(WaitKind.LEARNER, now - since):
                line = f"it owes an answer and has given none for {now - since:.0f} s"
                yield Overdue(kind=WaitKind.LEARNER, line=line, rank=rank)
        cutting = coordinator.cutting_since
        if cutting is not None and self._past(WaitKind.CHECKPOINT, now - cutting):
            yield Overdue(kind=WaitKind.CHECKPOINT, line="")
        yield from self._standstill(now)

    def _starting(self, now: float) -> Iterator[Overdue]:
        coordinator = self._coordinator
        started = coordinator.watch.started
        if coordinator.phase == "starting":
            if self._past(WaitKind.JOIN, now - started):
                missing = ", ".join(self._missing())
                line = f"after {now - started:.0f} s still missing: {missing}"
                yield Overdue(kind=WaitKind.JOIN, line=line)
        elif coordinator.phase in ("evaluating", "training"):
            since = max(started, coordinator.scheduler.last_loss)
            if not coordinator.scheduler.engines and self._past(WaitKind.NO_ENGINE, now - since):
                line = f"no engine for {now - since:.0f} s: all are lost, and none has come back"
                yield Overdue(kind=WaitKind.NO_ENGINE, line=line)

    def _missing(self) -> Iterator[str]:
        coordinator = self._coordinator
        absent = sorted(set(range(coordinator.core.settings.ranks)) - coordinator.learners)
        yield from (f"learner rank {rank}" for rank in absent)
        if not absent and coordinator.core.version < 0:
            yield "the first weights of learner rank 0"
        elif not coordinator.scheduler.serving():
            yield "an engine that serves the weights"

    def _of_engine(self, engine: EngineState, now: float) -> Iterator[Overdue]:
        """Its load, its answers to aborts, anything at all, and each of its legs."""
        if engine.loading >= 0:
            if self._past(WaitKind.LOAD, still := now - engine.owes_since):
                line = f"it has not served version {engine.loading} for {still:.0f} s"
                yield Overdue(kind=WaitKind.LOAD, line=line, engine=engine.name)
            return  # nothing else is due meanwhile
        time = engine.own_time(now)
        if engine.legs and self._past(WaitKind.ENGINE, still := time - engine.moved):
            line = f"it has sent nothing of {len(engine.legs)} legs for {still:.0f} s"
            yield Overdue(kind=WaitKind.ENGINE, line=line, engine=engine.name)
        elif engine.ending and self._past(WaitKind.ABORT, still := time - oldest_abort(engine)):
            of = ", ".join(f"{i}.{leg}" for i, leg in list(engine.ending)[:4])
            line = f"it has not answered for {still:.0f} s that legs have ended: {of}"
            yield Overdue(kind=WaitKind.ABORT, line=line, engine=engine.name)
        else:
            for (trajectory, _), moved in self._still_legs(engine, time):
                line = (
                    f"trajectory {trajectory}: no token of it has come from {engine.name} for "
                    f"{time - moved:.0f} s; it goes on elsewhere"
                )
                kind = WaitKind.TRAJECTORY
                yield Overdue(kind=kind, line=line, engine=engine.name, trajectory=trajectory)

    def _still_legs(self, engine: EngineState, time: float) -> list[tuple[Leg, float]]:
        """Those past their limit, when one may be: none was older when they were looked at."""
        limit, key = limit_s(WaitKind.TRAJECTORY, self._limits), (engine.name, engine.epoch)
        if not engine.legs or time <= self._look.get(key, -math.inf):
            return []
        going = {leg: at for leg, at in engine.legs.items() if leg not in engine.ending}
        found = [(leg, at) for leg, at in going.items() if time - at > limit]
        oldest = min((at for at in going.values() if time - at <= limit), default=time)
        self._look = {k: v for k, v in self._look.items() if k[0] != engine.name}
        self._look[key] = oldest + limit
        return found

    def _rewards(self, now: float) -> Iterator[Overdue]:
        """When none is answered any more, those that have been asked for long."""
        for trajectory, asked in self._coordinator.group_manager.awaiting_reward.items():
            still = now - max(asked, self.rewarded)
            if not self._past(WaitKind.REWARD, still):
                return  # those behind it were asked for later
            line = f"trajectory {trajectory}: no reward has come for {still:.0f} s; it is missing"
            yield Overdue(kind=WaitKind.REWARD, line=line, trajectory=trajectory)

    def _rollouts(self, now: float) -> Iterator[Overdue]:
        """The same of rollouts."""
        turns = self._coordinator.token_ingest.turns
        for trajectory, asked in self._coordinator.core.environment_calls.items():
            still = now - max(asked, turns.heard)
            if not self._past(WaitKind.ROLLOUT, still):
                return
            line = f"no rollout has answered for {still:.0f} s"
            yield Overdue(kind=WaitKind.ROLLOUT, line=line, trajectory=trajectory)

    def _note_debts(self, now: float) -> None:
        steps = self._coordinator.steps
        for rank in range(self._coordinator.core.settings.ranks):
            if not steps.owed_by(rank):
                self._owing.pop(rank, None)
            else:
                self._owing.setdefault(rank, now)

    def _standstill(self, now: float) -> Iterator[Overdue]:
        """Nothing is under way that could end the wait: a plug-in lets the run wait for ever."""
        coordinator = self._coordinator
        engines = coordinator.scheduler.engines.values()
        if (
            coordinator.phase not in ("evaluating", "training")
            or not self._past(WaitKind.RULE, now - coordinator.watch.progressed)
            or not engines
            or any(engine.legs or engine.loading >= 0 for engine in engines)
            or coordinator.group_manager.awaiting_reward
            or coordinator.core.environment_calls
            or self._owing
            or coordinator.cutting_since is not None
        ):
            return
        found = waits(coordinator)
        what = found[0].what if found else "nobody that it knows of"
        still = now - coordinator.watch.progressed
        line = f"nothing has moved for {still:.0f} s, nothing is under way, and it waits for {what}"
        yield Overdue(kind=WaitKind.RULE, line=line)


def oldest_abort(engine: EngineState) -> float:
    """When the one that is unanswered for longest was told, in the engine's own time."""
    return next(iter(engine.ending.values()))
