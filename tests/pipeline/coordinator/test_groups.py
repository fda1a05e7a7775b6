"""The tables of trajectories and groups, and what may never happen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from pipeline.coordinator.groups import (
    ENDED,
    GROUP_TRANSITIONS,
    TRANSITIONS,
    UNENDED,
    Group,
    GroupState,
    IllegalTransition,
    Trajectory,
    TrajectoryEvent,
    TrajectoryState,
)


def trajectory_in(state: TrajectoryState) -> Trajectory:
    return Trajectory(id=7, group=3, member=0, max_tokens=8, state=state, since=1.0)


def group_in(stage: GroupState) -> Group:
    return Group(
        id=3,
        kind="train",
        prompt=0,
        attempt=0,
        step=0,
        size=2,
        max_tokens=8,
        state=stage,
        since=1.0,
    )


ILLEGAL = [(s, c) for s in TrajectoryState for c in TrajectoryEvent if c not in TRANSITIONS[s]]
ILLEGAL_STAGES = [(a, b) for a in GroupState for b in GroupState if b not in GROUP_TRANSITIONS[a]]


@pytest.mark.parametrize("state,cause", ILLEGAL, ids=lambda v: str(v))
def test_illegal_transition_raises_and_changes_nothing(
    state: TrajectoryState, cause: TrajectoryEvent
) -> None:
    trajectory = trajectory_in(state)
    before = msgspec.msgpack.encode(trajectory)
    with pytest.raises(IllegalTransition, match=f"trajectory 7: {cause} while {state}"):
        trajectory.advance(cause, 9.0)
    assert msgspec.msgpack.encode(trajectory) == before


@pytest.mark.parametrize("stage,target", ILLEGAL_STAGES, ids=lambda v: str(v))
def test_illegal_group_transition_raises_and_changes_nothing(
    stage: GroupState, target: GroupState
) -> None:
    group = group_in(stage)
    before = msgspec.msgpack.encode(group)
    with pytest.raises(IllegalTransition, match=f"group 3: to {target} while {stage}"):
        group.advance(target, 9.0, "why")
    assert msgspec.msgpack.encode(group) == before


def test_legal_transitions_move_and_note_the_time() -> None:
    for state, causes in TRANSITIONS.items():
        for cause, target in causes.items():
            trajectory = trajectory_in(state)
            trajectory.advance(cause, 9.0)
            assert (trajectory.state, trajectory.since) == (target, 9.0)


def reachable(table: Mapping[Any, Any], start: Any) -> set[Any]:
    found, left = {start}, [start]
    while left:
        nexts = table[left.pop()]
        for state in nexts.values() if isinstance(nexts, dict) else nexts:
            if state not in found:
                found.add(state)
                left.append(state)
    return found


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    assert (
        set(TRANSITIONS) == set(TrajectoryState) == reachable(TRANSITIONS, TrajectoryState.QUEUED)
    )
    assert (
        set(GROUP_TRANSITIONS) == set(GroupState) == reachable(GROUP_TRANSITIONS, GroupState.OPEN)
    )


def test_every_cause_does_something() -> None:
    assert {cause for causes in TRANSITIONS.values() for cause in causes} == set(TrajectoryEvent)


def test_states_are_ended_unended_or_aborted_and_only_ended_ones_are_final() -> None:
    assert ENDED | UNENDED | {TrajectoryState.ABORTED} == set(TrajectoryState)
    assert not ENDED & UNENDED
    assert {s for s in TrajectoryState if not TRANSITIONS[s]} == ENDED | {TrajectoryState.ABORTED}


def test_trained_is_reached_from_accumulated_alone() -> None:
    assert {s for s in GroupState if GroupState.TRAINED in GROUP_TRANSITIONS[s]} == {
        GroupState.ACCUMULATED
    }


def test_members_are_shown_in_order_of_arrival_then_by_id_without_the_aborted() -> None:
    group = group_in(GroupState.OPEN)
    states = [
        TrajectoryState.QUEUED,
        TrajectoryState.FINISHED,
        TrajectoryState.ABORTED,
        TrajectoryState.TRUNCATED,
        TrajectoryState.RUNNING,
    ]
    group.members = [
        Trajectory(id=i, group=3, member=i, max_tokens=8, state=s) for i, s in enumerate(states)
    ]
    group.arrivals = [3, 1]
    assert [m.id for m in group.in_order_of_arrival()] == [3, 1, 0, 4]


def test_tokens_held_last_token_and_confidence_follow_from_the_bytes() -> None:
    trajectory = trajectory_in(TrajectoryState.RUNNING)
    assert (trajectory.held, trajectory.last_token, trajectory.confidence) == (0, -1, 0.0)
    trajectory.tokens += (5).to_bytes(4, "little") + (70000).to_bytes(4, "little")
    trajectory.logprob_sum = -3.0
    assert (trajectory.held, trajectory.last_token, trajectory.confidence) == (2, 70000, -1.5)
