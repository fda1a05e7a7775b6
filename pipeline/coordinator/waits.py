"""Names every wait of a run: what it waits for, since when, and what counts for its limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from pipeline.coordinator.engine_pool import EngineState
from pipeline.coordinator.group_manager import GroupManager
from pipeline.coordinator.groups import Group, GroupState, Trajectory, TrajectoryState
from pipeline.coordinator.run_state import RunPhase
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.state import CoordinatorState
from pipeline.coordinator.timeouts import WaitKind
from pipeline.coordinator.training_step import TrainingSteps
from pipeline.coordinator.turns import Turns


class Wait(msgspec.Struct, frozen=True):
    kind: WaitKind
    what: str  # whole sentence without a full stop
    since: float
    group: int = -1  # that waits; -1: it is none
    still_since: float = -1.0  # when anything moved that counts for its limit; -1: never

    def still_s(self, now: float) -> float:
        """Seconds that count for its limit."""
        return now - max(self.since, self.still_since)


class Waits:
    """Finds the waits of a run, and says once per limit what the longest one is."""

    def __init__(
        self,
        core: CoordinatorState,
        scheduler: Scheduler,
        group_manager: GroupManager,
        steps: TrainingSteps,
        turns: Turns,
    ) -> None:
        self._core, self._scheduler, self._group_manager = core, scheduler, group_manager
        self._steps, self._turns = steps, turns
        self._mark: tuple[int, ...] = ()
        self._said = 0.0

    def find(self, groups: Iterable[Group] | None = None) -> list[Wait]:
        """Everything the run waits for now, the longest wait first; those that hold slots only
        come last.

        Args:
            groups: look at these only; at every live one by default, which costs as much as
                there are members.
        """
        found = [*self._of_the_run()]
        for group in self._core.groups.values() if groups is None else groups:
            found += self._of_a_group(group)
        found.sort(key=lambda wait: wait.since)
        for engine in self._scheduler.engines.values():
            found += self._of_an_engine(engine)
        return found

    def overdue_line(self) -> str:
        """One line when nothing has moved for `log_wait_s`, else ''."""
        core, run = self._core, self._core.run
        mark = (core.step, core.next_group, core.ledger.sampled, len(core.groups))
        if not run.started:
            run.started = run.progressed = core.now
        if mark != self._mark:
            self._mark, run.progressed = mark, core.now
        if core.now - max(run.progressed, self._said) < core.settings.log_wait_s:
            return ""
        found = self.find()
        if not found:  # whatever it is, it does not wait in silence
            live = [f"{g.kind} group {g.id} {g.state}" for g in core.groups.values()][:8]
            what = f"an unknown cause, {run.phase}: {', '.join(live) or 'no group'}"
            found = [Wait(WaitKind.RULE, what, run.progressed)]
        self._said = core.now
        return f"waiting {core.now - found[0].since:.0f} s for {found[0].what}"

    def _of_the_run(self) -> Iterator[Wait]:
        core, run, scheduler = self._core, self._core.run, self._scheduler
        for engine in scheduler.engines.values():
            if engine.is_loading:
                what = f"engine {engine.name} to load and prove version {engine.loading}"
                yield Wait(WaitKind.LOAD, what, engine.loading_since, still_since=engine.owes_since)
        if run.phase is RunPhase.STARTING:
            missing = sorted(set(range(core.settings.ranks)) - run.learners)
            if missing:
                yield Wait(WaitKind.JOIN, f"learner ranks {missing} to join", run.started)
            elif core.version < 0:
                yield Wait(WaitKind.JOIN, "learner rank 0 to publish", run.started)
        if not scheduler.engines and run.phase is not RunPhase.OVER:
            kind = WaitKind.JOIN if run.phase is RunPhase.STARTING else WaitKind.NO_ENGINE
            yield Wait(kind, "an engine to join", max(run.started, scheduler.last_loss))
        if run.checkpoint_since is not None:
            what = f"the checkpoint of step {core.step}"
            yield Wait(WaitKind.CHECKPOINT, what, run.checkpoint_since)
        if owing := self._steps.step_close.owing:
            what = f"step {core.step + 1}: old logprobs of version {core.version} from learner "
            what += f"ranks {sorted(owing)}"
            yield Wait(WaitKind.CLOSE, what, self._steps.step_close.since)
        if core.weights_move:
            what = f"step {core.step + 1}: the optimizer step"
            oldest = min(run.owing.values(), default=core.now)
            yield Wait(WaitKind.LEARNER, what, run.progressed, still_since=oldest)

    def _of_an_engine(self, engine: EngineState) -> Iterator[Wait]:
        """Waits for an engine that does not load."""
        if engine.is_loading:
            return
        now = self._core.now
        time = engine.own_time(now)
        if engine.ending:
            what = f"engine {engine.name} to end {len(engine.ending)} legs"
            yield Wait(WaitKind.ABORT, what, now - (time - engine.oldest_abort))
        if engine.legs:
            what = f"engine {engine.name} to send anything of {len(engine.legs)} legs"
            yield Wait(WaitKind.ENGINE, what, now - (time - engine.moved))

    def _of_a_group(self, group: Group) -> Iterator[Wait]:
        """It waits for its rank, for the batch rule, or for its members."""
        core, run = self._core, self._core.run
        prefix = f"step {core.step + 1} waits for {group.kind} group {group.id}, which waits for "
        if group.state is GroupState.SENT:
            what = f"{prefix}learner rank {group.rank} to train on it"
            answered = run.owing.get(group.rank, core.now)
            yield Wait(WaitKind.LEARNER, what, group.since, group.id, answered)
        if group.state is GroupState.READY:
            what = f"{prefix}batch rule {type(core.plugins.batch).__name__} to take it"
            yield Wait(WaitKind.RULE, what, group.since, group.id, run.progressed)
        for member in group.members if group.is_open or group.state is GroupState.CHOSEN else ():
            found = self._of_a_member(group, member)
            if found is not None:
                kind, what, moved = found
                yield Wait(kind, prefix + what, member.since, group.id, moved)

    def _of_a_member(self, group: Group, member: Trajectory) -> tuple[WaitKind, str, float] | None:
        """Kind and words of what it waits for, and when anything of that moved last."""
        is_open = group.is_open or group.audited
        if member.state is TrajectoryState.RUNNING and is_open:
            what = f"trajectory {member.id}, running on {member.engine}, {member.held} tokens"
            return WaitKind.TRAJECTORY, what, self._scheduler.leg_moved(member)
        if member.state is TrajectoryState.WAITING_ENV and is_open:
            what = f"the environment to answer turn {member.turns} of trajectory {member.id}"
            return WaitKind.ENVIRONMENT, what, self._turns.heard
        if member.state is TrajectoryState.QUEUED and is_open:
            if not self._scheduler.serving():
                return None  # the engine is what it waits for, named by itself
            return WaitKind.SLOT, f"trajectory {member.id}, queued for a slot", -1.0
        if member.state is TrajectoryState.PARKED and is_open:
            until = "a slot" if member.parked_until == "slot" else "the next publish"
            return WaitKind.PARKED, f"trajectory {member.id}, parked until {until}", -1.0
        if member.id in self._group_manager.awaiting_reward:
            answered = self._core.run.reward_answered
            return WaitKind.REWARD, f"the reward of trajectory {member.id}", answered
        return None
