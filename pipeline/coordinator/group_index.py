"""Live training groups by state, counted as they move.

A step asks at every change how many groups are open, enough, ready, taken. The
answer must not cost more with thirty thousand groups in flight than with three:
so each group is entered here once, and moved whenever its state has changed.
Evaluation groups are not counted.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import chain

from pipeline.coordinator.groups import OPEN_STATES, TAKEN_STATES, Group, GroupState

LIVE_STATES = (*OPEN_STATES, GroupState.CHOSEN, GroupState.READY, *TAKEN_STATES)


class GroupIndex:
    """Every live training group by its state; `update` is the only way in, on and out."""

    def __init__(self) -> None:
        self.counts: dict[GroupState, int] = dict.fromkeys(LIVE_STATES, 0)
        self._state: dict[int, GroupState] = {}
        self._in: dict[GroupState, dict[int, Group]] = {state: {} for state in LIVE_STATES}
        self._ready: list[int] = []  # ids, ascending
        self._ready_now: tuple[int, ...] | None = ()  # the same, None: to be copied anew
        self._held: set[int] = set()  # ids of open groups whose selector said `Hold`
        self.at_rank: dict[int, int] = {}  # groups that each rank has yet to train on

    def update(self, group: Group) -> None:
        """Call this whenever a group has entered, moved or ended."""
        before = self._state.get(group.id)
        after = group.state if group.kind == "train" and group.state in self.counts else None
        if before is after:
            return
        if before is not None:
            self._leave(group, before)
        if after is not None:
            self._enter(group, after)

    def hold(self, group: Group) -> None:
        """Call this whenever `group.held` has changed."""
        if group.held:
            self._held.add(group.id)
        else:
            self._held.discard(group.id)

    def _leave(self, group: Group, state: GroupState) -> None:
        self.counts[state] -= 1
        self._held.discard(group.id)
        del self._state[group.id]
        del self._in[state][group.id]
        if state is GroupState.READY:
            del self._ready[bisect_left(self._ready, group.id)]
            self._ready_now = None
        elif state is GroupState.SENT:
            self.at_rank[group.rank] -= 1

    def _enter(self, group: Group, state: GroupState) -> None:
        self.counts[state] += 1
        self._state[group.id] = state
        self._in[state][group.id] = group
        if state is GroupState.READY:
            insort(self._ready, group.id)
            self._ready_now = None
        elif state is GroupState.SENT:
            self.at_rank[group.rank] = self.at_rank.get(group.rank, 0) + 1

    @property
    def live(self) -> int:
        """Groups that may still be trained on in the open step: all but the dead and the held."""
        return len(self._state) - self.counts[GroupState.DEAD] - len(self._held)

    @property
    def held(self) -> int:
        """Open groups that count as not coming."""
        return len(self._held)

    @property
    def small(self) -> int:
        """Open groups that are held, or have fewer candidates than members wanted and may come to
        be. Costs as much as there are open ones."""
        open_ones = self._in[GroupState.OPEN].values()
        return sum(group.held or group.sampled < group.size for group in open_ones)

    @property
    def taken(self) -> int:
        """Groups that the open step trains on."""
        return sum(self.counts[state] for state in TAKEN_STATES)

    @property
    def ready(self) -> tuple[int, ...]:
        """Ids of the groups that can be taken, oldest first."""
        if self._ready_now is None:
            self._ready_now = tuple(self._ready)
        return self._ready_now

    @property
    def all_trained(self) -> bool:
        """Every taken group has been trained on."""
        return not (self.counts[GroupState.TAKEN] or self.counts[GroupState.SENT])

    def in_any_order(self, *states: GroupState) -> Iterable[Group]:
        """Groups in these states, not copied: nothing may move while they are gone through."""
        return chain(*(self._in[state].values() for state in states))

    def groups(self, *states: GroupState) -> list[Group]:
        """Groups in these states, oldest first. Costs as much as there are: ask once a step."""
        return sorted(self.in_any_order(*states), key=lambda group: group.id)
