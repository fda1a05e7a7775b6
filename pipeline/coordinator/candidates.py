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
from pipeline.plugins.actions import Allocation, AnyAction, Include, Sample
from pipeline.plugins.variants import column_and_share
from pipeline.wire.messages import floats


def variant_refusal(core: CoordinatorState, group: Group, action: Sample) -> str:
    """Why this group can have no candidates with such a variant; '' if it can."""
    try:
        core.variant_tokens(group.prompt, action.variant)
    except ValueError as error:
        return str(error)
    return ""


def forkable(settings: Settings, origin: Trajectory) -> int:
    """First response tokens of a member that a fork may begin with, at most."""
    if origin.state is TrajectoryState.ABORTED or origin.foreign:
        return 0
    end = origin.held - (origin.last_token in settings.stop_tokens)
    if origin.turns:  # tokens of an environment are not continued, nor is a turn that is over
        end = (origin.appended[0][0] if origin.appended else origin.held) - 1
    limits = filter(None, (origin.max_tokens, settings.turn_tokens))
    return min(end, *(limit - 1 for limit in limits))


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
    if origin.marked is not None and origin.marked <= at:
        member.marked = origin.marked


def ids_of(action: AnyAction, group: Group) -> list[int]:
    """Members that an action names, or the one that it has just put into its group."""
    if isinstance(action, Include):
        return [group.members[-1].id]
    return list(getattr(action, "ids", ()))


def record(action: AnyAction) -> dict[str, object]:
    """What a decision's record says of candidates that are not just the prompt's."""
    if isinstance(action, Include):
        return {"source": action.source}
    if not isinstance(action, Sample) or not (action.variant or action.fork):
        return {}
    return {"n": action.n, "variant": action.variant, "fork": action.fork}


def records(group: Group) -> dict[str, object]:
    """What the group's record says of such members, by id."""
    variants = {str(m.id): m.variant for m in group.members if m.variant}
    forks = {str(m.id): [m.fork, m.prefix] for m in group.members if m.prefix}
    foreign = {str(m.id): m.foreign for m in group.members if m.foreign}
    found: dict[str, object] = {"variants": variants, "forks": forks, "foreign": foreign}
    return {name: of for name, of in found.items() if of}
