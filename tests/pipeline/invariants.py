"""What must hold of a coordinator after every event, whatever happened."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline import snapshot
from pipeline.coordinator import Coordinator
from pipeline.core import Core
from pipeline.groups import ENDED, State
from pipeline.placement import Placement


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
    check_fleet(core, coordinator.placement)


def check_fleet(core: Core, placement: Placement) -> None:
    """What is kept leg by leg is what going over all engines would find."""
    fleet, engines = placement.fleet, placement.engines.values()
    serving = [e for e in engines if e.version == core.version >= 0]
    assert fleet.serving == {e.name: e for e in serving}, "an engine serves and is not known to"
    assert fleet.slots == sum(e.slots for e in serving)
    assert fleet.idle == sum(e.slots - len(e.legs) for e in serving), "idle slots are miscounted"
    knee = core.settings.knee or core.latency.knee()
    below = sum(max(0, min(e.slots, knee) - len(e.legs)) for e in serving)
    assert placement.idle_below_knee() == below
    free = [(len(e.legs) / e.slots, e.name) for e in serving if len(e.legs) < e.slots]
    emptiest = fleet.emptiest()
    assert (emptiest.name if emptiest else "") == min(free, default=(0.0, ""))[1]
