"""Makes a selector's view of a group. Pure."""

from __future__ import annotations

from pipeline.coordinator.groups import Group, Trajectory, TrajectoryState
from pipeline.coordinator.state import CoordinatorState
from pipeline.plugins.views import GroupView, MemberView

STATE_NAMES = {state: state.value for state in TrajectoryState}


def member_view(member: Trajectory) -> MemberView:
    """Makes the selector's view of a member; called for each member at every question."""
    state, tokens, reward = member.state, member.sampled, member.reward
    return MemberView(
        id=member.id,
        state=STATE_NAMES[state],
        tokens=tokens,
        confidence=member.logprob_sum / tokens if tokens else 0.0,
        entropy=member.entropy,
        reward=reward,
        reward_failed=reward is None and member.scored,
        parts=member.parts,
        versions=tuple(member.versions),
        hit_limit=state is TrajectoryState.TRUNCATED and member.limited,
        variant=member.variant,
        fork=member.fork,
        foreign=member.foreign,
        score=member.score,
        remaining=member.remaining,
        marked=member.marked,
    )


def group_view(core: CoordinatorState, group: Group, foreign: tuple[str, ...]) -> GroupView:
    """Makes the selector's view of a group. `foreign`: sources that `Include` may name."""
    members = tuple([member_view(m) for m in group.in_order_of_arrival()])
    oldest = min((m.versions[0] for m in members if m.versions), default=core.version + 1)
    return GroupView(
        id=group.id,
        prompt=group.prompt,
        size=group.size,
        budget=group.sampled,
        step=core.step,
        now=core.now,
        members=members,
        statistics=core.statistics,
        seed=core.settings.seed,
        max_tokens=group.max_tokens,
        version=core.version,
        max_staleness=core.settings.max_staleness,
        due=oldest <= core.version - core.settings.max_staleness,
        opened=group.step,
        attempt=group.attempt,
        tag=core.tag(group.prompt),
        note=group.note,
        held=group.held,
        foreign=foreign,
    )
