"""The watchdog names the blocker: every wait, what it waits for, and who can end it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from pipeline.coordinator.engine_pool import EngineState
from pipeline.coordinator.groups import Group, GroupState, Trajectory, TrajectoryState
from pipeline.coordinator.timeouts import WaitKind

if TYPE_CHECKING:
    from pipeline.coordinator.coordinator import Coordinator


class Wait(msgspec.Struct, frozen=True):
    kind: WaitKind
    what: str  # whole sentence without a full stop
    since: float
    group: int = -1  # that waits; -1: it is none
    still_since: float = -1.0  # when anything moved that counts for its limit; -1: never

    def still_s(self, now: float) -> float:
        """Seconds that count for its limit."""
        return now - max(self.since, self.still_since)


def waits(coordinator: Coordinator, groups: Iterable[Group] | None = None) -> list[Wait]:
    """Everything the run waits for now, the longest wait first; last those that hold slots only.

    Args:
        groups: look at these only; at every live one by default, which costs as much as
            there are members.
    """
    found = [*_of_the_run(coordinator)]
    for group in coordinator.core.groups.values() if groups is None else groups:
        found += _of_a_group(coordinator, group)
    found.sort(key=lambda wait: wait.since)
    for engine in coordinator.scheduler.engines.values():
        found += _of_an_engine(coordinator.core.now, engine)
    return found


def _of_the_run(coordinator: Coordinator) -> Iterator[Wait]:
    core, started = coordinator.core, coordinator.watch.started
    for engine in coordinator.scheduler.engines.values():
        if engine.loading >= 0:
            what = f"engine {engine.name} to load and prove version {engine.loading}"
            yield Wait(WaitKind.LOAD, what, engine.loading_since, still_since=engine.owes_since)
    if coordinator.phase == "starting":
        missing = sorted(set(range(core.settings.ranks)) - coordinator.learners)
        if missing:
            yield Wait(WaitKind.JOIN, f"learner ranks {missing} to join", started)
        elif core.version < 0:
            yield Wait(WaitKind.JOIN, "learner rank 0 to publish", started)
    if not coordinator.scheduler.engines and coordinator.phase != "over":
        kind = WaitKind.JOIN if coordinator.phase == "starting" else WaitKind.NO_ENGINE
        yield Wait(kind, "an engine to join", max(started, coordinator.scheduler.last_loss))
    if coordinator.cutting_since is not None:
        what = f"the checkpoint of step {core.step}"
        yield Wait(WaitKind.CHECKPOINT, what, coordinator.cutting_since)
    if coordinator.steps.finishing:
        what = f"step {core.step + 1}: the optimizer step"
        since = coordinator.watch.progressed
        answered = coordinator.watchdog.oldest_debt()
        yield Wait(WaitKind.LEARNER, what, since, still_since=answered)


def _of_an_engine(now: float, engine: EngineState) -> Iterator[Wait]:
    """What it does not say, while it does not load."""
    if engine.loading >= 0:
        return
    time = engine.own_time(now)
    if engine.ending:
        what = f"engine {engine.name} to end {len(engine.ending)} legs"
        yield Wait(WaitKind.ABORT, what, now - (time - next(iter(engine.ending.values()))))
    if engine.legs:
        what = f"engine {engine.name} to send anything of {len(engine.legs)} legs"
        yield Wait(WaitKind.ENGINE, what, now - (time - engine.moved))


def _of_a_group(coordinator: Coordinator, group: Group) -> Iterator[Wait]:
    """It waits for its rank, for the batch rule, or for its members."""
    core = coordinator.core
    prefix = f"step {core.step + 1} waits for {group.kind} group {group.id}, which waits for "
    if group.stage is GroupState.TAKEN and group.trained_tokens < 0 and group.sent:
        what = f"{prefix}learner rank {group.rank} to train on it"
        answered = coordinator.watchdog.owing_since(group.rank)
        yield Wait(WaitKind.LEARNER, what, group.since, group.id, answered)
    if group.stage is GroupState.READY:
        what = f"{prefix}batch rule {type(core.plugins.batch).__name__} to take it"
        yield Wait(WaitKind.RULE, what, group.since, group.id, coordinator.watch.progressed)
    for member in group.members if group.stage in (GroupState.OPEN, GroupState.CHOSEN) else ():
        found = _of_a_member(coordinator, group, member)
        if found is not None:
            kind, what, moved = found
            yield Wait(kind, prefix + what, member.since, group.id, moved)


def _of_a_member(
    coordinator: Coordinator, group: Group, member: Trajectory
) -> tuple[WaitKind, str, float] | None:
    """Kind and words of what it waits for, and when anything of that moved last."""
    scheduler, is_open = coordinator.scheduler, group.stage is GroupState.OPEN or group.audited
    if member.state is TrajectoryState.RUNNING and is_open:
        what = f"trajectory {member.id}, running on {member.engine}, {member.held} tokens"
        return WaitKind.TRAJECTORY, what, scheduler.leg_moved(member)
    if member.state is TrajectoryState.WAITING_ENV and is_open:
        what = f"the rollout to answer turn {member.turns} of trajectory {member.id}"
        return WaitKind.ROLLOUT, what, coordinator.token_ingest.turns.heard
    if member.state is TrajectoryState.QUEUED and is_open:
        if not scheduler.serving():
            return None  # the engine is what it waits for, named by itself
        return WaitKind.SLOT, f"trajectory {member.id}, queued for a slot", -1.0
    if member.state is TrajectoryState.PARKED and is_open:
        until = "a slot" if member.parked_until == "slot" else "the next publish"
        return WaitKind.PARKED, f"trajectory {member.id}, parked until {until}", -1.0
    if member.id in coordinator.group_manager.awaiting_reward:
        answered = coordinator.watchdog.rewarded
        return WaitKind.REWARD, f"the reward of trajectory {member.id}", answered
    return None


class WaitReporter:
    """Says once per limit what the longest wait is."""

    def __init__(self) -> None:
        self.started = 0.0
        self.progressed = 0.0  # last time that a step, a group or a token moved
        self._mark: tuple[int, ...] = ()
        self._said = 0.0

    def overdue(self, coordinator: Coordinator) -> str:
        """One line when nothing has moved for `warn_s`, else ''."""
        core = coordinator.core
        mark = (core.step, core.next_group, core.ledger.sampled, len(core.groups))
        if not self.started:
            self.started = self.progressed = core.now
        if mark != self._mark:
            self._mark, self.progressed = mark, core.now
        limit = core.settings.warn_s
        if core.now - max(self.progressed, self._said) < limit:
            return ""
        found = waits(coordinator)
        if not found:  # whatever it is, it does not wait in silence
            stages = [f"{g.kind} group {g.id} {g.stage}" for g in core.groups.values()][:8]
            what = (
                f"nobody that it knows of, {coordinator.phase}: {', '.join(stages) or 'no group'}"
            )
            found = [Wait(WaitKind.RULE, what, self.progressed)]
        self._said = core.now
        return f"waiting {core.now - found[0].since:.0f} s for {found[0].what}"
