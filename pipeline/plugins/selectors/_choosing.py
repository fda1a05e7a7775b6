"""Says which members may be chosen, and what is the last resort; shared by the selectors.

Pure functions over a group's view.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pipeline.plugins.actions import Drop, Finalize
from pipeline.plugins.views import GroupView, MemberView


def usable(group: GroupView) -> list[MemberView]:
    """Finished members in order of arrival, without those whose reward failed."""
    return [member for member in group.finished if not member.reward_failed]


def filled_to_size(group: GroupView) -> list[MemberView]:
    """Usable members, then truncated ones, both in order of arrival, `size` at most.

    Truncated ones only fill up: their length says where we cut, not what was needed.
    """
    truncated = [member for member in group.truncated if not member.reward_failed]
    return [*usable(group), *truncated][: group.size]


def shortest_first(members: Iterable[MemberView]) -> list[MemberView]:
    """Sorts by length; ties stay in order of arrival."""
    return sorted(members, key=lambda member: member.tokens)


def longest_first(members: Iterable[MemberView]) -> list[MemberView]:
    """Sorts by length from the long end; ties stay in order of arrival."""
    return sorted(members, key=lambda member: -member.tokens)


def both_ends(ordered: Sequence[MemberView], size: int, longest: int) -> list[MemberView]:
    """The first `size - longest` of `ordered`, and the longest of the others.

    A size smaller than wanted (after `Relax`) keeps at least one from the short end.
    """
    long = min(longest, size - 1)
    short, rest = ordered[: size - long], ordered[size - long :]
    return [*short, *longest_first(rest)[:long]]


def scored(group: GroupView) -> list[MemberView]:
    """Ended members whose reward is known, in order of arrival."""
    return [member for member in group.ended if member.reward is not None]


def settled(group: GroupView) -> bool:
    """True once every member has ended and its reward is known or has failed."""
    known = all(member.reward is not None or member.reward_failed for member in group.ended)
    return not group.unended and known


def may_wait(group: GroupView) -> bool:
    """True if its tokens could be trained on after the next publish too."""
    return group.max_staleness > 0 and not group.due


def reward_of(member: MemberView) -> float:
    """The reward of a scored member."""
    return member.reward or 0.0


def mean_reward(members: Sequence[MemberView]) -> float:
    """The mean reward of scored members, one or more."""
    return math.fsum(map(reward_of, members)) / len(members)


def by_reward(members: Sequence[MemberView], high: int, low: int) -> list[MemberView]:
    """The `high` best and the `low` worst of the others, in their old order; of equal ones the
    first."""
    best = {m.id for m in sorted(members, key=lambda m: -reward_of(m))[:high]}
    others = [member for member in members if member.id not in best]
    worst = {m.id for m in sorted(others, key=reward_of)[:low]}
    return [member for member in members if member.id in best | worst]


def finalize(
    members: Sequence[MemberView],
    why: str,
    kind: str = "",
    weights: tuple[float, ...] | None = None,
) -> Finalize | Drop:
    """Choose these, or drop the group when they are fewer than two."""
    if len(members) < 2:
        return Drop(why=f"{len(members)} usable of the ended members; an advantage needs two")
    return Finalize(ids=tuple(m.id for m in members), weights=weights, why=why, kind=kind)
