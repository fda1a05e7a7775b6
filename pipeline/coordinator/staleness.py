"""Bounded asynchrony: how far generation may run ahead, and what must be trained on now.

`max_staleness = k`: no token is trained on that was sampled by weights more
than `k` versions old. Prompts of the next k steps go out before the update is
published; the last steps of a run open no more than they can train on. Pure.
Source of the admission rule: AReaL, arXiv 2505.24298.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.coordinator.groups import Group, GroupState, TrajectoryState

if TYPE_CHECKING:
    from pipeline.coordinator.state import CoordinatorState

BEFORE_TAKING = (GroupState.OPEN, GroupState.CHOSEN, GroupState.READY)


def ahead(core: CoordinatorState) -> int:
    """Steps that generation may be ahead of the open one."""
    return max(0, min(core.settings.max_staleness, core.settings.steps - 1 - core.step))


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


def too_old(core: CoordinatorState, group: Group) -> bool:
    """Whether it holds a token that may not be trained on any more (or of no known version)."""
    oldest = core.version - core.settings.max_staleness
    return any(not oldest <= version <= core.version for version in versions(group))


def due(core: CoordinatorState) -> list[Group]:
    """Groups that would be too old after the next publish: now, or not at all. Oldest first."""
    return [group for group in core.train_groups(*BEFORE_TAKING) if is_due(core, group)]


def is_due(core: CoordinatorState, group: Group) -> bool:
    """Whether one of its tokens is as old as it may be: after the next publish it is too old."""
    limit = core.version - core.settings.max_staleness
    return min(versions(group), default=limit + 1) <= limit


class Due:
    """What `due` would say, without going over all groups at every question.

    They are gone over once a version. In between a group becomes due only by a token of
    old weights, and none does that is not noted here; one that is due ceases to be so
    when members leave it or it is taken, which is seen when it is asked about.
    """

    def __init__(self, core: CoordinatorState) -> None:
        self._core = core
        self._version: int | None = None  # that the others hold for
        self._late: list[Group] = []  # all that are due, and some that no longer are
        self._ready: dict[int, Group] = {}  # those of them that are ready

    def note(self, group: Group) -> None:
        """It holds a token of another version than before, or is ready now."""
        if self._core.settings.max_staleness and self._version == self._core.version:
            self._add(group)

    @property
    def exists(self) -> bool:
        """Whether any group is due."""
        self._refresh()
        while self._late and not self._holds(self._late[-1]):
            self._late.pop()
        return bool(self._late)

    @property
    def ready(self) -> tuple[int, ...]:
        """Ids of groups that are due and can be taken, oldest first."""
        self._refresh()
        self._ready = {i: g for i, g in self._ready.items() if g.stage is GroupState.READY}
        return tuple(sorted(self._ready))

    def _refresh(self) -> None:
        if self._version != self._core.version:
            self._version, self._late, self._ready = self._core.version, [], {}
            for group in reversed(due(self._core)):
                self._add(group)

    def _add(self, group: Group) -> None:
        if self._holds(group):
            self._late.append(group)
            if group.stage is GroupState.READY:
                self._ready[group.id] = group

    def _holds(self, group: Group) -> bool:
        known = group.kind == "train" and group.stage in BEFORE_TAKING
        return known and is_due(self._core, group)


def of_trained(core: CoordinatorState, groups: list[Group]) -> dict[str, float]:
    """Mean and largest age, in versions, of the oldest token of each member trained on."""
    ages = [
        core.version - member.versions[0]
        for group in groups
        for member in group.members
        if member.id in group.chosen and member.versions
    ]
    if not ages or not core.settings.max_staleness:
        return {}
    return {"staleness_mean": sum(ages) / len(ages), "staleness_max": max(ages)}
