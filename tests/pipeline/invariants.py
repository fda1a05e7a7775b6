"""What must hold of a coordinator after every event, whatever happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pipeline import snapshot, staleness
from pipeline.coordinator import Coordinator
from pipeline.core import Core
from pipeline.groups import ENDED, Stage, State
from pipeline.placement import Placement
from pipeline.tally import PLACES


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
    check_tally(core)
    check_fleet(core, coordinator.placement)


def check_tally(core: Core) -> None:
    """What is kept as groups move is what going over all of them would find."""
    groups = [g for g in core.groups.values() if g.kind == "train"]
    counts = dict.fromkeys(PLACES, 0) | Counter(
        ("dead" if g.dead else "enough") if g.stage is Stage.OPEN and g.enough else g.stage.value
        for g in groups
    )
    assert core.tally.counts == counts, "groups are counted wrong"
    assert core.tally.live == len(groups) - counts["dead"]
    for stage in set(PLACES.values()):
        here = [g for g in groups if g.stage is stage]
        assert core.train_groups(stage) == here, f"a group is {stage} and not found, or not {stage}"
        assert len(list(core.tally.in_any_order(stage))) == len(here)
    assert core.tally.ready == tuple(g.id for g in groups if g.stage is Stage.READY)
    untrained = any(g.stage is Stage.TAKEN and g.trained_tokens < 0 for g in groups)
    assert core.tally.all_trained != untrained
    if core.settings.max_staleness and core.version >= 0:
        due = staleness.due(core)
        assert core.due.exists == bool(due), "a group is due and not waited for, or not due"
        assert core.due.ready == tuple(g.id for g in due if g.stage is Stage.READY)


def check_fleet(core: Core, placement: Placement) -> None:
    """The same of engines."""
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
