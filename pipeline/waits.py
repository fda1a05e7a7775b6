"""The watchdog names the blocker: every wait, what it waits for, and who can end it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from pipeline.groups import Group, Stage, State

if TYPE_CHECKING:
    from pipeline.coordinator import Coordinator


class Wait(msgspec.Struct, frozen=True):
    what: str  # whole sentence without a full stop
    since: float
    group: int = -1  # that waits; -1: it is none


def waits(coordinator: Coordinator, groups: Iterable[Group] | None = None) -> list[Wait]:
    """Everything the run waits for now, the longest wait first.

    Args:
        groups: look at these only; at every live one by default, which costs as much as
            there are members.
    """
    core = coordinator.core
    found: list[Wait] = []
    for engine in coordinator.placement.engines.values():
        if engine.loading >= 0:
            what = f"engine {engine.name} to load and prove version {engine.loading}"
            found.append(Wait(what, engine.loading_since))
    missing = sorted(set(range(core.settings.ranks)) - coordinator.learners)
    if coordinator.phase == "starting":
        if missing:
            found.append(Wait(f"learner ranks {missing} to join", coordinator.watch.started))
        elif core.version < 0:
            found.append(Wait("learner rank 0 to publish", coordinator.watch.started))
    if not coordinator.placement.engines and coordinator.phase != "over":
        since = max(coordinator.watch.started, coordinator.placement.last_loss)
        found.append(Wait("an engine to join", since))
    if coordinator.cutting_since is not None:
        found.append(Wait(f"the checkpoint of step {core.step}", coordinator.cutting_since))
    if coordinator.steps.finishing:
        found.append(
            Wait(f"step {core.step + 1}: the optimizer step", coordinator.watch.progressed)
        )
    serves = bool(coordinator.placement.serving())
    for group in core.groups.values() if groups is None else groups:
        prefix = f"step {core.step + 1} waits for {group.kind} group {group.id}, which waits for "
        if group.stage is Stage.TAKEN and group.trained_tokens < 0 and group.sent:
            what = f"learner rank {group.rank} to train on it"
            found.append(Wait(prefix + what, group.since, group.id))
        if group.stage is Stage.READY:
            batch = type(core.seams.batch).__name__
            found.append(Wait(f"{prefix}batch rule {batch} to take it", group.since, group.id))
        for member in group.members if group.stage in (Stage.OPEN, Stage.CHOSEN) else ():
            if member.state is State.RUNNING and group.stage is Stage.OPEN:
                what = f"trajectory {member.id}, running on {member.engine}, {member.held} tokens"
            elif member.state is State.CALLING and group.stage is Stage.OPEN:
                what = f"the rollout to answer turn {member.turns} of trajectory {member.id}"
            elif member.state is State.QUEUED and group.stage is Stage.OPEN:
                if not serves:
                    continue  # the engine is what it waits for, named above
                what = f"trajectory {member.id}, queued for a slot"
            elif member.state is State.PARKED and group.stage is Stage.OPEN:
                until = "a slot" if member.parked_until == "slot" else "the next publish"
                what = f"trajectory {member.id}, parked until {until}"
            elif member.state in (State.FINISHED, State.TRUNCATED) and not member.scored:
                what = f"the reward of trajectory {member.id}"
            else:
                continue
            found.append(Wait(prefix + what, member.since, group.id))
    return sorted(found, key=lambda wait: wait.since)


class Watch:
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
            found = [Wait(what, self.progressed)]
        self._said = core.now
        return f"waiting {core.now - found[0].since:.0f} s for {found[0].what}"
