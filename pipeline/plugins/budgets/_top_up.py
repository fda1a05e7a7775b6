"""Gives open groups extra candidates while slots are idle; shared by the budgets.

A fresh candidate is likely to be short, so a straggler holds its group up no
more. Pure functions over the views of open groups.
"""

from __future__ import annotations

import bisect
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

    top_up: Literal["none", "fewest", "slowest"] = "none"
    """Slots that fall idle: left idle, or given to new candidates of the open groups with the
    `fewest` finished, or of those predicted to be the `slowest` to have M finished, where a new one
    is predicted to end sooner. Only below an engine's knee."""
    most: PerMember = 2.0
    """Candidates of a group at most, for each trajectory trained on; M_up in the paper is 2."""


def most_candidates(options: BudgetOptions, size: int) -> int:
    """M_up for groups of `size`."""
    return max(size, math.floor(options.most * size + 0.5))


def more_candidates(
    groups: Sequence[OpenView], idle: int, options: BudgetOptions
) -> list[tuple[int, int]]:
    """What the option `top_up` gives; groups that are enough, or hold `most`, get none."""
    if options.top_up == "none":
        return []
    if options.top_up == "slowest" and any(group.predicted().fresh for group in groups):
        return slowest_first(groups, idle, options)
    return fewest_finished(groups, idle, options)


def fewest_finished(
    groups: Sequence[OpenView], idle: int, options: BudgetOptions
) -> list[tuple[int, int]]:
    """One candidate at a time to the group with the fewest finished; of equal ones to that with the
    fewest unended, then to the oldest."""
    heap = [
        (group.finished, group.unended, group.id, room)
        for group, room in with_room(groups, options)
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


def slowest_first(
    groups: Sequence[OpenView], idle: int, options: BudgetOptions
) -> list[tuple[int, int]]:
    """One candidate at a time to the group whose M-th finished one is the furthest off, in tokens
    predicted; ties to the oldest. None where a new one would not end sooner than that."""
    heap: list[tuple[float, int]] = []
    to_come: dict[int, list[float]] = {}
    about: dict[int, tuple[OpenView, int, float]] = {}
    for group, room in with_room(groups, options):
        predicted = group.predicted()
        if predicted.fresh is not None:
            to_come[group.id] = list(predicted.unended)
            about[group.id] = group, room, predicted.fresh
            heap.append((-_last_needed(group, to_come[group.id]), group.id))
    heapq.heapify(heap)
    given: dict[int, int] = {}
    while heap and idle > 0:
        wait, id_ = heapq.heappop(heap)
        group, room, fresh = about[id_]
        if fresh >= -wait:
            continue  # its last one ends sooner than a new one would
        idle -= 1
        given[id_] = given.get(id_, 0) + 1
        bisect.insort(to_come[id_], fresh)
        if given[id_] < room:
            heapq.heappush(heap, (-_last_needed(group, to_come[id_]), id_))
    return sorted(given.items())


def _last_needed(group: OpenView, to_come: Sequence[float]) -> float:
    """Tokens until as many as it needs have finished; infinite: not with those that there are."""
    missing = group.size - group.finished
    if missing < 1:
        return 0.0
    return to_come[missing - 1] if missing <= len(to_come) else math.inf


def with_room(groups: Sequence[OpenView], options: BudgetOptions) -> list[tuple[OpenView, int]]:
    """Groups that may have more candidates, and how many more."""
    rooms = ((group, most_candidates(options, group.size) - group.sampled) for group in groups)
    return [(group, room) for group, room in rooms if room > 0 and not group.enough]
