"""Groups by stage, kept as they move: the same as going over all of them, and noticed if not."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.coordinator import staleness
from pipeline.coordinator.group_index import LIVE_STATES, GroupIndex
from pipeline.coordinator.groups import Group, GroupState
from pipeline.coordinator.state import CoordinatorState
from tests.pipeline.coordinator.world import World, plugins_of, settings_of


def group(number: int, kind: str = "train") -> Group:
    return Group(id=number, kind=kind, prompt=number, attempt=0, step=0, size=2, max_tokens=8)


def counted(group_index: GroupIndex) -> dict[str, int]:
    return {state.value: count for state, count in group_index.counts.items() if count}


def test_a_group_is_counted_where_it_stands_and_no_more_when_it_has_ended() -> None:
    group_index, one = GroupIndex(), group(0)
    group_index.update(one)
    assert counted(group_index) == {"open": 1}
    for state in (
        GroupState.ENOUGH,
        GroupState.DEAD,
        GroupState.CHOSEN,
        GroupState.READY,
        GroupState.TAKEN,
        GroupState.SENT,
        GroupState.ACCUMULATED,
    ):
        one.advance(state, 0.0)
        group_index.update(one)
        assert counted(group_index) == {state.value: 1}
        assert group_index.groups(state) == [one]
        assert group_index.live == (state is not GroupState.DEAD), "another is opened for it"
        assert group_index.taken == one.is_taken
    one.advance(GroupState.TRAINED, 0.0)
    group_index.update(one)
    assert counted(group_index) == {}
    assert (group_index.live, group_index.groups(*LIVE_STATES)) == (0, [])


def test_groups_come_oldest_first_whatever_they_have_been_through() -> None:
    group_index, groups = GroupIndex(), [group(number) for number in range(4)]
    for one in groups:
        group_index.update(one)
    for number in (2, 0, 3):
        if number:
            groups[number].advance(GroupState.ENOUGH, 0.0)
        groups[number].advance(GroupState.CHOSEN, 0.0)
        group_index.update(groups[number])
    for number in (3, 2):
        groups[number].advance(GroupState.READY, 0.0)
        group_index.update(groups[number])
    assert group_index.ready == (2, 3)
    assert [
        g.id for g in group_index.groups(GroupState.READY, GroupState.CHOSEN, GroupState.OPEN)
    ] == [
        0,
        1,
        2,
        3,
    ]
    groups[2].advance(GroupState.TAKEN, 0.0)
    group_index.update(groups[2])
    assert group_index.ready == (3,)


def test_all_are_trained_when_no_taken_group_waits_for_its_rank() -> None:
    group_index, one = GroupIndex(), group(0)
    assert group_index.all_trained
    for state in (GroupState.TAKEN, GroupState.SENT):
        one.state = state
        group_index.update(one)
        assert not group_index.all_trained
    assert group_index.at_rank == {one.rank: 1}
    one.state = GroupState.ACCUMULATED
    group_index.update(one)
    assert group_index.all_trained
    assert group_index.at_rank == {one.rank: 0}


def test_evaluation_groups_are_not_counted() -> None:
    group_index = GroupIndex()
    group_index.update(group(0, "eval"))
    assert counted(group_index) == {}


# --- an index that goes wrong is noticed ------------------------------------------------------


def forgets(place: str) -> Any:
    note = GroupIndex.update

    def forgetful(self: GroupIndex, group: Group) -> None:
        if group.state.value != place and (place or group.state in LIVE_STATES):
            note(self, group)

    return forgetful


def _noticed(worlds: dict[str, Any], selector: str, message: str) -> None:
    for seed in range(30):
        world = World(seed, settings_of(seed=seed, **worlds), plugins_of(selector, seed=seed))
        try:
            world.start()
            world.run(limit=3000)
        except AssertionError as error:
            if message not in str(error):
                raise
            return
    raise AssertionError("nobody noticed")


@pytest.mark.parametrize(
    "place", ["enough", "dead", "chosen", "ready", "taken", "sent", "accumulated", ""]
)
def test_the_world_finds_a_group_that_is_not_noted(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(GroupIndex, "update", forgets(place))
    # A taken group is sent at once, unless all wait for the end of generation.
    settings = {"overlap": "off"} if place == "taken" else {}
    _noticed(settings, "dual_end", "")


def test_the_world_finds_a_group_that_moves_past_the_books(monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(self: CoordinatorState, group: Group, state: GroupState, why: str = "") -> None:
        group.advance(state, self.now, why)

    monkeypatch.setattr(CoordinatorState, "advance", advance)
    _noticed({}, "first_m", "counted wrong")


def test_the_world_finds_a_late_token_that_is_not_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staleness.DueGroups, "note", lambda self, group, newest: None)
    _noticed({"steps": 5, "max_staleness": 1, "need": 4}, "first_m", "")
