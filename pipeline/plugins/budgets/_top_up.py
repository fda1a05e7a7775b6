"""Gives open groups extra candidates while slots are idle; shared by the budgets.

A fresh candidate is likely to be short, so a straggler holds its group up no
more. Pure functions over the views of open groups.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta

from pipeline.plugins import interfaces
from pipeline.plugins.views import OpenView

PerMember = Annotated[float, Meta(ge=1, le=64)]
"""Candidates of a group for each trajectory trained on."""


class BudgetOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options that every budget has."""

    top_up: Literal["none", "fewest"] = "none"
    """Slots that fall idle: left idle, or given to new candidates of the open groups with
    the `fewest` finished. Only below an engine's knee."""
    most: PerMember = 2.0
    """Candidates of a group at most, for each trajectory trained on; M_up in the paper is 2."""


def most_candidates(options: BudgetOptions, size: int) -> int:
    """M_up for groups of `size`."""
    return max(size, math.floor(options.most * size + 0.5))


def fewest_finished(
    groups: Sequence[OpenView], idle: int, options: BudgetOptions
) -> list[tuple[int, int]]:
    """One candidate at a time to the group with the fewest finished; ties: fewest unended, oldest.

    Groups that are enough, or hold `most` candidates, get none.
    """
    if options.top_up == "none":
        return []
    rooms = [(group, most_candidates(options, group.size) - group.sampled) for group in groups]
    heap = [
        (group.finished, group.unended, group.id, room)
        for group, room in rooms
        if room > 0 and not group.enough
    ]
    heapq.heapify(heap)
    given: dict[int, int] = {}
    while heap and idle > 0:
        finished, unended, group, room = heapq.heappop(heap)
        given[group] = given.get(group, 0) + 1
        idle -= 1
        if room > 1:
            heapq.heappush(heap, (finished, unended + 1, group, room - 1))
    return sorted(given.items())
