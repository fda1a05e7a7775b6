"""Says which members may be chosen, and what is the last resort; shared by the selectors.

Pure functions over a group's view.
"""

from __future__ import annotations

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


def finalize(members: Sequence[MemberView], why: str, kind: str = "") -> Finalize | Drop:
    """Choose these, or drop the group when they are fewer than two."""
    if len(members) < 2:
        return Drop(why=f"{len(members)} usable of the ended members; an advantage needs two")
    return Finalize(ids=tuple(member.id for member in members), why=why, kind=kind)
