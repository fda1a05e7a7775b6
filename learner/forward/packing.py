"""Packs groups into micro-batches under a token cap: one pure function.

A micro-batch is one packed call: its tokens stand one after another, without
padding, and a group's shared prefix is in it once. Groups stay together, so
that the prefix is computed once; a group over the cap is split and its prefix
repeated, unless groups have to stay whole. (Members with another prompt are a group
of their own here.) Knows no tensor and no model. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """Members of one group that share a micro-batch, and with it their prefix."""

    group: int
    """Index of the group."""
    members: tuple[int, ...]
    """Indices within the group, ascending."""


def pack(
    groups: Sequence[tuple[int, Sequence[int]]],
    cap: int,
    *,
    whole_groups: bool = False,
    owners: Sequence[int] = (),
) -> list[list[Part]]:
    """Pack into micro-batches of at most `cap` tokens, by first-fit decreasing.

    A part costs its group's prefix and the tokens of its members. A member that exceeds
    `cap` with its prefix gets a micro-batch of its own. Every member comes exactly once; a
    group without members not at all.

    Args:
        groups: (prefix, members): tokens that the members share, >= 0, and each
            member's own tokens, >= 1.
        cap: tokens per micro-batch, >= 1.
        whole_groups: do not split a group, also if it exceeds `cap`.
        owners: a number for each group, >= 0; those of one number then stay together, too.

    Raises: ValueError if a length or the cap is too small.

    >>> pack([(5, [10, 20]), (5, [30, 60, 2])], cap=100)
    [[Part(group=1, members=(0, 1, 2))], [Part(group=0, members=(0, 1))]]
    """
    for prefix, members in groups:
        if cap < 1 or prefix < 0 or min(members, default=1) < 1:
            raise ValueError(
                f"cap {cap} and members {list(members)!r} must be at least 1, prefix {prefix} 0"
            )
    sized = [
        (prefix + sum(members[index] for index in chosen), Part(group, tuple(sorted(chosen))))
        for group, (prefix, members) in enumerate(groups)
        for chosen in _first_fit(members, sum(members) if whole_groups else cap - prefix)
    ]
    units: dict[int, list[int]] = {}  # indices of `sized` that stay together
    for index, (_, part) in enumerate(sized):
        together = owners[part.group] if whole_groups and owners else -1 - index
        units.setdefault(together, []).append(index)
    parts = [[sized[index] for index in unit] for unit in units.values()]
    batches = _first_fit([sum(size for size, _ in unit) for unit in parts], cap)
    return [[part for unit in sorted(batch) for _, part in parts[unit]] for batch in batches]


def _first_fit(sizes: Sequence[int], cap: int) -> list[list[int]]:
    """Put indices of `sizes` into bins of at most `cap`, the largest first, each where it fits."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        for place, left in enumerate(room):
            if sizes[index] <= left:
                bins[place].append(index)
                room[place] -= sizes[index]
                break
        else:
            bins.append([index])
            room.append(cap - sizes[index])
    return bins
