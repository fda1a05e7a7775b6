"""Candidates that are not just the prompt's: with a variant behind it, or forked from a member.

A fork begins with the first tokens of another member of its group, with what is known of them:
behaviour logprobs, versions, old logprobs. Those tokens were sampled once and are in the account of
the member that sampled them, whatever becomes of it; the fork's own account begins behind them, so
the ledger's sum holds by construction. A fork is trained on its whole response, as any other.
What cannot be is refused, before anything has changed.
"""

from __future__ import annotations

import numpy as np

from pipeline.coordinator.groups import Group, Trajectory, TrajectoryState
from pipeline.coordinator.state import CoordinatorState, Settings
from pipeline.plugins.actions import Allocation, AnyAction, Sample
from pipeline.plugins.variants import column_and_share
from pipeline.wire.messages import floats


def refusal(core: CoordinatorState, group: Group, action: Sample) -> str:
    """Why this group can have no such candidates; '' if it can."""
    try:
        core.variant_tokens(group.prompt, action.variant)
    except ValueError as error:
        return str(error)
    if action.fork is None:
        return ""
    origin = group.member(action.fork[0])
    if origin is None or origin.state is TrajectoryState.ABORTED:
        return f"fork: {action.fork[0]} is no member of the group"
    return _fork_refusal(core.settings, origin, action.fork[1])


def _fork_refusal(settings: Settings, origin: Trajectory, at: int) -> str:
    end = origin.held
    if origin.turns:  # tokens of an environment are not continued, nor is a turn that is over
        end = (origin.appended[0][0] if origin.appended else end) - 1
    for limit in filter(None, (origin.max_tokens, settings.turn_tokens)):
        end = min(end, limit - 1)
    if not 1 <= at <= end:
        return (
            f"fork: {at} tokens of member {origin.id}, of which 1 to {end} can be continued "
            "(tokens held, of its first turn, short of every limit)"
        )
    last = int.from_bytes(origin.tokens[4 * at - 4 : 4 * at], "little", signed=True)
    return f"fork: token {at} of {origin.id} ended it" if last in settings.stop_tokens else ""


def allocation_refusal(core: CoordinatorState, allocation: Allocation) -> str:
    """Why a budget cannot give this; '' if it can."""
    counts = [count for count, _ in allocation.variants]
    if any(count < 1 for count in counts) or sum(counts) > allocation.candidates:
        return (
            f"variants {allocation.variants}: at least one candidate each, "
            f"{allocation.candidates} in all"
        )
    try:
        for _, variant in allocation.variants:
            column_and_share(variant, core.variants)
    except ValueError as error:
        return str(error)
    return ""


def begin_as_fork(member: Trajectory, origin: Trajectory, at: int) -> None:
    """Give a new member the first `at` response tokens of another."""
    member.variant, member.fork, member.prefix = origin.variant, origin.id, at
    member.tokens += origin.tokens[: 4 * at]
    member.logprobs += origin.logprobs[: 4 * at]
    member.logprob_sum = float(floats(bytes(member.logprobs)).sum(dtype=np.float64))
    member.version_starts = [start for start in origin.version_starts if start[0] < at]
    member.old += origin.old[: 4 * at]


def record(action: AnyAction) -> dict[str, object]:
    """What a decision's record says of candidates that are not just the prompt's."""
    if not isinstance(action, Sample) or not (action.variant or action.fork):
        return {}
    return {"n": action.n, "variant": action.variant, "fork": action.fork}


def records(group: Group) -> dict[str, object]:
    """What the group's record says of such members, by id."""
    variants = {str(m.id): m.variant for m in group.members if m.variant}
    forks = {str(m.id): [m.fork, m.prefix] for m in group.members if m.prefix}
    found: dict[str, object] = {"variants": variants} if variants else {}
    return found | ({"forks": forks} if forks else {})
