"""What must hold of a coordinator after every event, whatever happened."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline import snapshot
from pipeline.coordinator import Coordinator
from pipeline.groups import ENDED, State


def check(coordinator: Coordinator, group_fates: Mapping[int, int]) -> None:
    """Books, slots, tables and prompts; `group_fates`: group -> how often it was reported ended."""
    core = coordinator.core
    assert core.ledger.imbalance == 0, "the ledger is off"
    assert core.ledger.sampled == coordinator.placement.total_reported
    assert min(core.ledger.accounts.values()) >= 0
    live = [m for g in core.groups.values() for m in g.members if m.state is not State.ABORTED]
    parked = sum(m.held for m in live if m.state is State.PARKED)
    assert core.ledger.accounts["parked"] == parked
    assert core.ledger.accounts["open"] == sum(m.held for m in live) - parked
    assert {m.id for m in live} == set(core.trajectories), "a trajectory is lost"
    for engine in coordinator.placement.engines.values():
        assert len(engine.legs) <= engine.slots, "a slot is oversubscribed"
    for member in live:
        assert member.held <= member.max_tokens
        if member.state is State.RUNNING:
            legs = coordinator.placement.engines[member.engine].legs
            assert (member.id, member.leg) in legs
        assert (member.state in ENDED) == (member.id in core.groups[member.group].arrivals)
    snapshot.check_prompts(coordinator)
    assert all(count == 1 for count in group_fates.values()), "a group ended twice"
