"""Bounded asynchrony: how far generation may run ahead, and what must be trained on now.

`max_staleness = k`: no token is trained on that was sampled by weights more
than `k` versions old. Prompts of the next k steps go out before the update is
published; the last steps of a run open no more than they can train on. Pure.
Source of the admission rule: AReaL, arXiv 2505.24298.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.coordinator.group_index import GroupIndex
from pipeline.coordinator.groups import OPEN_STATES, Group, GroupState, TrajectoryState

BEFORE_TAKING = (*OPEN_STATES, GroupState.CHOSEN, GroupState.READY)


def steps_ahead(k: int, step: int, steps: int) -> int:
    """Steps that generation may be ahead of the open one, which is `step` of `steps`."""
    return max(0, min(k, steps - 1 - step))


def versions(group: Group) -> list[int]:
    """Policy versions of the tokens that the group may train on, or trains on once it is chosen."""
    return [
        version
        for member in group.members
        if (
            member.id in group.chosen
            if group.chosen
            else member.state is not TrajectoryState.ABORTED
        )
        for version in member.versions
    ]


def too_old(group: Group, newest: int, k: int) -> bool:
    """Returns True if it holds a token that may not be trained on (or of an unknown version)."""
    return any(not newest - k <= version <= newest for version in versions(group))


def is_due(group: Group, newest: int, k: int) -> bool:
    """Returns True if one of its tokens is too old after the next publish."""
    limit = newest - k
    return min(versions(group), default=limit + 1) <= limit


def due(index: GroupIndex, newest: int, k: int) -> list[Group]:
    """Groups that would be too old after the next publish: now, or not at all; no step waits for
    those that are held. Oldest first."""
    return [
        group
        for group in index.groups(*BEFORE_TAKING)
        if not group.held and is_due(group, newest, k)
    ]


class DueGroups:
    """Answers what `due` would, without going over all groups at every question.

    They are gone over once a version. In between a group becomes due only by a token of
    old weights, and none does that is not noted here; one that is due ceases to be so
    when members leave it or it is taken, which is seen when it is asked about.
    """

    def __init__(self, index: GroupIndex, k: int) -> None:
        self._index, self._k = index, k
        self._version: int | None = None  # that the others hold for
        self._late: list[Group] = []  # all that are due, and some that no longer are
        self._ready: dict[int, Group] = {}  # those of them that are ready

    def note(self, group: Group, newest: int) -> None:
        """It holds a token of another version than before, or is ready now."""
        if self._k and self._version == newest:
            self._add(group)

    def any_due(self, newest: int) -> bool:
        """Returns True if any group is due."""
        self._refresh(newest)
        while self._late and not self._holds(self._late[-1]):
            self._late.pop()
        return bool(self._late)

    def ready(self, newest: int) -> tuple[int, ...]:
        """Ids of groups that are due and can be taken, oldest first."""
        self._refresh(newest)
        self._ready = {i: g for i, g in self._ready.items() if g.state is GroupState.READY}
        return tuple(sorted(self._ready))

    def _refresh(self, newest: int) -> None:
        if self._version != newest:
            self._version, self._late, self._ready = newest, [], {}
            for group in reversed(due(self._index, newest, self._k)):
                self._add(group)

    def _add(self, group: Group) -> None:
        if self._holds(group):
            self._late.append(group)
            if group.state is GroupState.READY:
                self._ready[group.id] = group

    def _holds(self, group: Group) -> bool:
        known = group.kind == "train" and group.state in BEFORE_TAKING and not group.held
        return known and self._version is not None and is_due(group, self._version, self._k)


def trained_staleness(groups: Sequence[Group], newest: int, k: int) -> dict[str, float]:
    """Mean and largest age, in versions, of the oldest token of each member trained on."""
    ages = [
        newest - member.versions[0]
        for group in groups
        for member in group.members
        if member.id in group.chosen and member.versions
    ]
    if not ages or not k:
        return {}
    return {"staleness_mean": sum(ages) / len(ages), "staleness_max": max(ages)}
