"""Makes the batch rule's view of the open step, and facts about a group where it asks for them."""

from __future__ import annotations

from pipeline.coordinator.group_index import LIVE_STATES
from pipeline.coordinator.groups import UNENDED, GroupState
from pipeline.coordinator.staleness import versions
from pipeline.coordinator.state import CoordinatorState
from pipeline.plugins.views import BatchView, GroupFacts, KeptView


def batch_view(
    core: CoordinatorState,
    *,
    need: int,
    size: int,
    closing: bool,
    exhausted: bool,
    due: tuple[int, ...],
    kept: tuple[KeptView, ...],
) -> BatchView:
    """The view; what depends on all groups is computed when it is asked for."""
    index = core.group_index
    return BatchView(
        step=core.step,
        need=need,
        taken=index.taken,
        ready=index.ready,
        chosen=index.counts[GroupState.CHOSEN],
        enough=index.counts[GroupState.ENOUGH],
        open=index.counts[GroupState.OPEN],
        size=size,
        group_size=core.settings.size,
        closing=closing,
        ahead=core.ahead,
        due=due,
        held=index.held,
        version=core.version,
        exhausted=exhausted,
        kept=kept,
        facts=lambda group: group_facts(core, group),
        groups=lambda: tuple(group.id for group in core.train_groups(*LIVE_STATES)),
    )


def group_facts(core: CoordinatorState, group_id: int) -> GroupFacts:
    """What a batch rule may know of a live group. Raises KeyError."""
    group = core.groups[group_id]
    members = [m for m in group.members if not group.chosen or m.id in group.chosen]
    unended = [m for m in group.members if m.state in UNENDED]
    return GroupFacts(
        id=group.id,
        prompt=group.prompt,
        tag=core.tag(group.prompt),
        state=group.state.value,
        opened=group.step,
        version=min(versions(group), default=-1),
        rewards=tuple(m.reward for m in members if m.reward is not None),
        lengths=tuple(m.sampled for m in members),
        held=group.held,
        asleep=bool(unended) and all(m.parked_until == "published" for m in unended),
        replay=group.replay is not None,
    )
