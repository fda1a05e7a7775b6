"""The learner's schedule: order of work, and what trains together."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from learner.schedule import Schedule, ScheduleError, Train, tokens_of
from pipeline.wire.messages import (
    CloseStep,
    ForgetGroup,
    Generate,
    Save,
    Shutdown,
    TrainGroup,
    TrainMember,
    Welcome,
)


def group_of(group: int, step: int = 0, tokens: int = 10) -> TrainGroup:
    values = np.zeros(tokens, dtype="<i4").tobytes()
    member = TrainMember(trajectory=0, response=values, behaviour=values, reward=0, advantage=0)
    return TrainGroup(step=step, group=group, prompt=b"", members=(member,))


def close_of(step: int, *groups: int) -> CloseStep:
    return CloseStep(step=step, groups=groups, normaliser=1.0)


SAVE = Save(directory="d", step=0, version=0)


def trained(schedule: Schedule) -> list[int]:
    work = schedule.next()
    assert isinstance(work, Train)
    return [group.group for group in work.groups]


def test_groups_that_wait_together_train_together_up_to_the_token_cap():
    schedule = Schedule(token_cap=25)
    for group in (1, 2, 3):
        schedule.put(group_of(group))
    assert trained(schedule) == [1, 2]
    assert trained(schedule) == [3]
    assert schedule.next() is None


def test_a_prompt_counts_once_however_many_members_share_it():
    group = group_of(1, tokens=10)
    shared = np.zeros(30, dtype="<i4").tobytes()
    group = msgspec.structs.replace(group, prompt=shared, members=group.members * 4)
    assert tokens_of(group) == 30 + 4 * 10


def test_a_group_over_the_cap_trains_alone():
    schedule = Schedule(token_cap=25)
    schedule.put(group_of(1, tokens=400))
    schedule.put(group_of(2))
    assert trained(schedule) == [1]


def test_groups_of_the_next_step_wait_until_the_open_one_is_done():
    schedule = Schedule(token_cap=100)
    schedule.put(group_of(1, step=4))
    schedule.put(group_of(2, step=5))
    close = close_of(4, 1)
    schedule.put(close)
    assert trained(schedule) == [1]
    assert schedule.next() == close
    assert schedule.next() is None
    schedule.step_done()
    assert trained(schedule) == [2]


def test_a_checkpoint_overtakes_groups_but_not_an_optimizer_step():
    schedule = Schedule(token_cap=100)
    schedule.put(group_of(1))
    schedule.put(SAVE)
    assert schedule.next() == SAVE
    assert trained(schedule) == [1]
    close = close_of(0, 1)
    schedule.put(close)
    schedule.put(SAVE)
    assert schedule.next() == close
    assert schedule.next() == SAVE


def test_a_waiting_group_is_forgotten_silently_and_a_trained_one_is_work():
    schedule = Schedule(token_cap=100)
    schedule.put(group_of(1))
    schedule.put(ForgetGroup(group=1))
    assert schedule.next() is None
    schedule.put(ForgetGroup(group=7))
    assert schedule.next() == ForgetGroup(group=7)


def test_a_new_epoch_forgets_what_was_asked_before():
    schedule = Schedule(token_cap=100)
    schedule.put(group_of(1, step=9))
    welcome = Welcome(incarnation=2, epoch=1, weights_directory="w")
    schedule.put(welcome)
    schedule.put(group_of(2, step=3))
    assert schedule.next() == welcome
    assert trained(schedule) == [2]


def test_shutdown_comes_before_everything():
    schedule = Schedule(token_cap=100)
    schedule.put(group_of(1))
    schedule.put(Shutdown(why="over"))
    assert schedule.next() == Shutdown(why="over")


def test_messages_that_make_no_sense_are_refused_with_their_step():
    schedule = Schedule(token_cap=100)
    with pytest.raises(ScheduleError, match="Generate"):
        schedule.put(Generate(requests=()))
    schedule.put(group_of(1, step=4))
    assert trained(schedule) == [1]
    schedule.put(close_of(5, 1))
    with pytest.raises(ScheduleError, match="step 5 closes while 4 is open"):
        schedule.next()


def test_without_room_for_two_every_group_is_a_pass_of_its_own():
    """As with `debug.ordered`: which groups wait together is a matter of time."""
    schedule = Schedule(0)
    for number in range(3):
        schedule.put(group_of(number))
    for number in range(3):
        work = schedule.next()
        assert isinstance(work, Train)
        assert [group.group for group in work.groups] == [number]
