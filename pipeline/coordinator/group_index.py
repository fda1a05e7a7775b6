"""Live training groups by stage, counted as they move.

A step asks at every change how many groups are open, enough, ready, taken. The
answer must not cost more with thirty thousand groups in flight than with three:
so each group is entered here once, and noted again whenever it has changed.
Evaluation groups are not counted.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from pipeline.coordinator.groups import Group, GroupState

SUBSTATES = {
    "open": GroupState.OPEN,
    "enough": GroupState.OPEN,
    "dead": GroupState.OPEN,
    "chosen": GroupState.CHOSEN,
    "ready": GroupState.READY,
    "taken": GroupState.TAKEN,
}
"""What a live group counts as: its stage, and while it is open whether it is enough or dead."""


def substate_of(group: Group) -> str:
    """One of PLACES, or '' for a group that is not counted (any more)."""
    stage = group.stage
    if group.kind != "train" or stage.value not in SUBSTATES:
        return ""
    if stage is GroupState.OPEN and group.enough:
        return "dead" if group.dead else "enough"
    return stage.value


class GroupIndex:
    """Where every live training group stands. `note` is the only way in, on and out."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(SUBSTATES, 0)
        self._place: dict[int, str] = {}
        self._in: dict[GroupState, dict[int, Group]] = {stage: {} for stage in SUBSTATES.values()}
        self._ready: list[int] = []  # ids, ascending
        self._ready_now: tuple[int, ...] | None = ()  # the same, None: to be copied anew
        self._untrained: dict[int, int] = {}  # taken, and the rank has not answered -> rank
        self.at_rank: dict[int, int] = {}  # how many of those each rank has

    def update(self, group: Group) -> None:
        """To be called whenever a group has entered, moved, ended, or become enough, dead,
        or trained on."""
        number, before, after = group.id, self._place.get(group.id, ""), substate_of(group)
        if before != after:
            if before:
                self._leave(group, before)
            if after:
                self._enter(group, after)
        if number in self._untrained:
            self.at_rank[self._untrained.pop(number)] -= 1
        if after == "taken" and group.trained_tokens < 0:
            self._untrained[number] = group.rank
            self.at_rank[group.rank] = self.at_rank.get(group.rank, 0) + 1

    def _leave(self, group: Group, place: str) -> None:
        self.counts[place] -= 1
        del self._place[group.id]
        del self._in[SUBSTATES[place]][group.id]
        if place == "ready":
            del self._ready[bisect_left(self._ready, group.id)]
            self._ready_now = None

    def _enter(self, group: Group, place: str) -> None:
        self.counts[place] += 1
        self._place[group.id] = place
        self._in[SUBSTATES[place]][group.id] = group
        if place == "ready":
            insort(self._ready, group.id)
            self._ready_now = None

    @property
    def live(self) -> int:
        """Groups that may still be trained on: all but the dead."""
        return len(self._place) - self.counts["dead"]

    @property
    def ready(self) -> tuple[int, ...]:
        """Ids of the groups that can be taken, oldest first."""
        if self._ready_now is None:
            self._ready_now = tuple(self._ready)
        return self._ready_now

    @property
    def all_trained(self) -> bool:
        """Every taken group has been trained on."""
        return not self._untrained

    def in_any_order(self, stage: GroupState) -> Iterable[Group]:
        """Groups in this stage, not copied: nothing may move while they are gone through."""
        return self._in[stage].values()

    def groups(self, *stages: GroupState) -> list[Group]:
        """Groups in these stages, oldest first. Costs as much as there are: ask once a step."""
        found = [group for stage in stages for group in self._in[stage].values()]
        return sorted(found, key=lambda group: group.id)
