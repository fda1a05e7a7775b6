"""Finds waits that have lasted past their limit, so that no wait lasts for ever.

Once a tick it names what is overdue, by the table in `pipeline.coordinator.timeouts`; the
coordinator carries each row's action out. A tick costs the same with 65,536 open groups as
with a hundred: it looks at engines, at the oldest reward, at ranks, and at the legs of an
engine only once one of them may be due. Invariant: whatever is waited for has a row, or
waits for something that has one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from pipeline.coordinator.engine_pool import EngineState, Leg
from pipeline.coordinator.group_manager import GroupManager
from pipeline.coordinator.run_state import RunPhase
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.state import CoordinatorState
from pipeline.coordinator.timeouts import WaitKind, limit_s
from pipeline.coordinator.training_step import TrainingSteps
from pipeline.coordinator.turns import Turns
from pipeline.coordinator.waits import Waits

_LATE_S = 5.0
"""A tick so much later than the one before: the stage itself stood still, so no peer is
blamed, and nothing is done until as much time has passed again."""


class Overdue(msgspec.Struct, frozen=True, kw_only=True):
    """A wait past its limit; the names of those that the action needs."""

    kind: WaitKind
    line: str
    engine: str = ""
    trajectory: int = -1
    rank: int = -1


class Watchdog:
    """`acted`: how often, by kind of wait."""

    def __init__(
        self,
        core: CoordinatorState,
        scheduler: Scheduler,
        group_manager: GroupManager,
        steps: TrainingSteps,
        turns: Turns,
        waits: Waits,
    ) -> None:
        self._core, self._scheduler, self._group_manager = core, scheduler, group_manager
        self._steps, self._turns, self._waits = steps, turns, waits
        self.acted: Counter[str] = Counter()
        self._limits = core.settings.limits
        self._ticked = self._quiet_until = -math.inf
        self._look: dict[tuple[str, int], float] = {}  # engine, epoch -> when a leg may be due

    def rank_answered(self, rank: int) -> None:
        """It owes the next answer from now on, if it owes any."""
        self._core.run.owing.pop(rank, None)

    def tick(self) -> list[Overdue]:
        """Everything that is overdue now and has to be acted on."""
        now = self._core.now
        late, self._ticked = now - self._ticked, now
        if _LATE_S < late < math.inf:
            self._quiet_until = max(now, self._quiet_until) + late
        self._note_debts(now)
        if now < self._quiet_until:
            return []
        found = list(self._overdue(now))
        self.acted.update(overdue.kind.value for overdue in found)
        return found

    # --- what is overdue ----------------------------------------------------------------

    def _past(self, kind: WaitKind, seconds: float) -> bool:
        return seconds > limit_s(kind, self._limits)

    def _overdue(self, now: float) -> Iterator[Overdue]:
        """All of it, at most one wait for each engine."""
        run = self._core.run
        yield from self._starting(now)
        for engine in self._scheduler.engines.values():
            yield from self._of_engine(engine, now)
        asked, answered = self._group_manager.awaiting_reward, run.reward_answered
        yield from self._calls(WaitKind.REWARD, asked, answered, now)
        calls = self._core.environment_calls
        yield from self._calls(WaitKind.ENVIRONMENT, calls, self._turns.heard, now)
        for rank, since in run.owing.items():
            if self._past(WaitKind.LEARNER, now - since):
                line = f"it owes an answer and has given none for {now - since:.0f} s"
                yield Overdue(kind=WaitKind.LEARNER, line=line, rank=rank)
        close = self._steps.step_close
        if close.owing and self._past(WaitKind.CLOSE, now - close.since):
            yield Overdue(kind=WaitKind.CLOSE, line="")
        cutting = run.checkpoint_since
        if cutting is not None and self._past(WaitKind.CHECKPOINT, now - cutting):
            yield Overdue(kind=WaitKind.CHECKPOINT, line="")
        yield from self._standstill(now)

    def _starting(self, now: float) -> Iterator[Overdue]:
        run, scheduler = self._core.run, self._scheduler
        if run.phase is RunPhase.STARTING:
            if self._past(WaitKind.JOIN, now - run.started):
                missing = ", ".join(self._missing())
                line = f"after {now - run.started:.0f} s still missing: {missing}"
                yield Overdue(kind=WaitKind.JOIN, line=line)
        elif run.works:
            since = max(run.started, scheduler.last_loss)
            if not scheduler.engines and self._past(WaitKind.NO_ENGINE, now - since):
                line = f"no engine for {now - since:.0f} s: all are lost, and none has come back"
                yield Overdue(kind=WaitKind.NO_ENGINE, line=line)

    def _missing(self) -> Iterator[str]:
        absent = sorted(set(range(self._core.settings.ranks)) - self._core.run.learners)
        yield from (f"learner rank {rank}" for rank in absent)
        if not absent and self._core.version < 0:
            yield "the first weights of learner rank 0"
        elif not self._scheduler.serving():
            yield "an engine that serves the weights"

    def _of_engine(self, engine: EngineState, now: float) -> Iterator[Overdue]:
        """Its load, its answers to aborts, anything at all, and each of its legs."""
        if engine.is_loading:
            if self._past(WaitKind.LOAD, still := now - engine.owes_since):
                line = f"it has not served version {engine.loading} for {still:.0f} s"
                yield Overdue(kind=WaitKind.LOAD, line=line, engine=engine.name)
            return  # nothing else is due meanwhile
        time = engine.own_time(now)
        if engine.legs and self._past(WaitKind.ENGINE, still := time - engine.moved):
            line = f"it has sent nothing of {len(engine.legs)} legs for {still:.0f} s"
            yield Overdue(kind=WaitKind.ENGINE, line=line, engine=engine.name)
        elif engine.ending and self._past(WaitKind.ABORT, still := time - engine.oldest_abort):
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

    def _calls(
        self, kind: WaitKind, asked: Mapping[int, float], answered: float, now: float
    ) -> Iterator[Overdue]:
        """Calls of this kind that are overdue: asked long ago, and none answered since."""
        for trajectory, since in asked.items():
            still = now - max(since, answered)
            if not self._past(kind, still):
                return  # those behind it were asked later
            line = f"no environment has answered for {still:.0f} s"
            if kind is WaitKind.REWARD:
                line = (
                    f"trajectory {trajectory}: no reward has come for {still:.0f} s; it is missing"
                )
            yield Overdue(kind=kind, line=line, trajectory=trajectory)

    def _note_debts(self, now: float) -> None:
        owing = self._core.run.owing
        for rank in range(self._core.settings.ranks):
            if not self._steps.step_close.owed_by(rank):
                owing.pop(rank, None)
            else:
                owing.setdefault(rank, now)

    def _standstill(self, now: float) -> Iterator[Overdue]:
        """Nothing is under way that could end the wait: a plug-in lets the run wait for ever."""
        run, engines = self._core.run, self._scheduler.engines.values()
        if (
            not run.works
            or not self._past(WaitKind.RULE, now - run.progressed)
            or not engines
            or any(engine.legs or engine.is_loading for engine in engines)
            or self._group_manager.awaiting_reward
            or self._core.environment_calls
            or run.owing
            or run.checkpoint_since is not None
        ):
            return
        found = self._waits.find()
        what = found[0].what if found else "an unknown cause"
        still = now - run.progressed
        line = f"nothing has moved for {still:.0f} s, nothing is under way, and it waits for {what}"
        yield Overdue(kind=WaitKind.RULE, line=line)
