"""RoRecomp: which responses of a step come first, METHODS-MORE's numbers."""

from __future__ import annotations

import msgspec
import pytest

from pipeline.plugins.actions import NoSignal
from pipeline.plugins.advantages.rorecomp import Rorecomp, RorecompOptions, priority
from pipeline.plugins.testing import outcomes_of, step_of

LENGTHS, REWARDS = [100, 300, 500, 800], [1.0, 1.0, 0.0, 0.0]


def in_step(step: int, rule: Rorecomp) -> list[list[float]]:
    members = [msgspec.structs.replace(m, step=step) for m in outcomes_of(REWARDS, tokens=LENGTHS)]
    return [a.weights.tolist() for a in rule.of_step(step_of(members[:2], members[2:]))]


def test_short_right_and_long_wrong_answers_come_first():
    assert priority(LENGTHS, [True, True, False, False], 0.5) == [0, 3]
    assert priority([5, 5, 5], [True, True, True], 0.5) == [0, 1], "ties in order, rounded up"
    assert priority([9], [False], 0.1) == [0], "one at least"
    assert priority([], [], 0.5) == []


def test_the_others_of_the_step_have_weight_0_and_every_fourth_step_leaves_nothing_out():
    rule = Rorecomp()
    assert in_step(0, rule) == [[1, 0], [0, 1]]
    assert in_step(3, rule) == [[1, 1], [1, 1]]
    assert in_step(0, Rorecomp(RorecompOptions(every=1))) == [[1, 1], [1, 1]]
    assert in_step(0, Rorecomp(RorecompOptions(first=1.0))) == [[1, 1], [1, 1]]


def test_advantages_are_over_the_whole_group():
    members = outcomes_of(REWARDS, tokens=LENGTHS)
    [answer] = Rorecomp().of_step(step_of(members))
    assert answer.values.tolist() == [0.5, 0.5, -0.5, -0.5]
    assert answer.why == "2 of 4 come first"
    divided = Rorecomp(RorecompOptions(divide_by_deviation=True)).of_step(step_of(members))
    assert divided[0].values.tolist() == pytest.approx([0.866, 0.866, -0.866, -0.866], abs=1e-3)
    assert isinstance(Rorecomp().advantages(members[:1]), NoSignal)
    assert list(Rorecomp().of_step([])) == []
