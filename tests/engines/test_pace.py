"""The pace of an engine's steps: how long each is held back, and which are late."""

from __future__ import annotations

import pytest

from engines.pace import FREE, Load, StepPace
from pipeline.hardware.costs import EngineCost
from pipeline.wire.fields import PacedSteps

COST = EngineCost(points=((1, 0.010), (2, 0.012)), kv_s=1e-5, prefill_s=1e-4)


class Clock:
    """Time that passes only in sleep, and when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> StepPace:
    return StepPace(COST, lambda: clock.now_s, clock.sleep)


def load(running: int = 1, cached: int = 0, prefilled: int = 0) -> Load:
    return Load(running=running, cached=cached, prefilled=prefilled)


def step(pace: StepPace, clock: Clock, work_s: float, of: Load) -> None:
    pace.begin(of)
    clock.now_s += work_s
    pace.end()


def test_a_step_waits_for_what_is_left_of_its_cost(pace: StepPace, clock: Clock) -> None:
    step(pace, clock, 0.004, load(running=2, cached=100, prefilled=20))
    assert clock.slept == [pytest.approx(0.012 + 100 * 1e-5 + 20 * 1e-4 - 0.004)]
    assert pace.take_counts() == PacedSteps(steps=1)
    assert pace.take_counts() == PacedSteps(), "counted once"


def test_scheduling_between_two_steps_is_a_part_of_the_second(pace: StepPace, clock: Clock) -> None:
    for _ in range(3):
        step(pace, clock, 0.004, load())
        clock.now_s += 0.002
    assert clock.now_s == pytest.approx(100 + 3 * 0.010 + 0.002), "only the last pause is added"


def test_after_a_pause_a_step_begins_when_it_begins(pace: StepPace, clock: Clock) -> None:
    step(pace, clock, 0.004, load())
    clock.now_s += 1.0
    step(pace, clock, 0.004, load())
    assert clock.now_s == pytest.approx(100 + 0.010 + 1.0 + 0.010)


def test_a_slower_real_step_is_counted_and_nothing_is_caught_up(
    pace: StepPace, clock: Clock
) -> None:
    step(pace, clock, 0.025, load())
    step(pace, clock, 0.004, load())
    assert clock.now_s == pytest.approx(100 + 0.025 + 0.010)
    counts = pace.take_counts()
    assert (counts.steps, counts.late) == (2, 1)
    assert counts.late_s == pytest.approx(0.015)


def test_requests_that_are_not_held_back_do_not_count(pace: StepPace, clock: Clock) -> None:
    of = Load()
    of.add(f"{FREE}1.2.3-abc", held=0, computed=12)
    step(pace, clock, 0.004, of)
    assert (clock.slept, pace.take_counts()) == ([], PacedSteps())
    of.add("1.2.4-abc", held=0, computed=12)
    of.add("1.2.5-abc", held=30, computed=1)
    assert of == load(running=2, cached=30, prefilled=12)
