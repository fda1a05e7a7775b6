"""What must hold of a coordinator after every event, whatever happened."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline import snapshot
from pipeline.coordinator import Coordinator
from pipeline.events import Train
from pipeline.groups import ENDED, State


class Violation(AssertionError):
    """Something that must never be; the message says what."""


def _hold(fact: bool, otherwise: str) -> None:
    if not fact:
        raise Violation(otherwise)


def check(coordinator: Coordinator, group_fates: Mapping[int, int]) -> None:
    """Books, slots, tables and prompts; `group_fates`: group -> how often it was reported ended.

    Raises: Violation, or SnapshotError if prompts are lost.
    """
    core, placement = coordinator.core, coordinator.placement
    _hold(core.ledger.imbalance == 0, "the ledger is off")
    _hold(core.ledger.sampled == placement.total_reported, "engines count other tokens")
    _hold(min(core.ledger.accounts.values()) >= 0, "an account is below zero")
    live = [m for g in core.groups.values() for m in g.members if m.state is not State.ABORTED]
    parked = sum(m.held for m in live if m.state is State.PARKED)
    _hold(core.ledger.accounts["parked"] == parked, "parked tokens are not those counted")
    held = sum(m.held for m in live) - parked
    _hold(core.ledger.accounts["open"] == held, "open tokens are not those counted")
    _hold({m.id for m in live} == set(core.trajectories), "a trajectory is lost")
    for engine in placement.engines.values():
        _hold(len(engine.legs) <= engine.slots, "a slot is oversubscribed")
    for member in live:
        _hold(member.held <= member.max_tokens, "a trajectory is longer than its limit")
        if member.state is State.RUNNING:
            on = placement.engines.get(member.engine)
            known = on is not None and (member.id, member.leg) in on.legs
            _hold(known, f"trajectory {member.id} runs nowhere")
        arrived = member.id in core.groups[member.group].arrivals
        _hold((member.state in ENDED) == arrived, f"arrival of trajectory {member.id}")
    snapshot.check_prompts(coordinator)
    _hold(all(count == 1 for count in group_fates.values()), "a group ended twice")


def check_age(coordinator: Coordinator, command: Train) -> None:
    """Of a group that goes to the learner: no token is too old. Raises Violation."""
    core = coordinator.core
    oldest = core.version - core.settings.max_staleness
    group = core.groups[command.group]
    for member in command.members:
        found = group.member(member.trajectory)
        _hold(found is not None, f"member {member.trajectory} is none of group {group.id}")
        young = found is not None and min(found.versions) >= oldest
        _hold(young, f"trajectory {member.trajectory} has tokens older than version {oldest}")
