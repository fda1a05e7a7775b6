"""What the core asks an advantage plug-in, how often, and what it does with the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.coordinator.events import Report, TrainGroup
from pipeline.coordinator.state import PluginFault
from pipeline.plugins.actions import Advantages, Enough, Finalize
from pipeline.plugins.views import GroupOutcome, Outcome
from pipeline.wire.messages import floats
from tests.pipeline.coordinator.bench import Bench, only


class Counts:
    """Advantage: its own number of the question, for every member."""

    def __init__(self, **extra: Any) -> None:
        self.asked, self._extra = 0, extra

    def advantages(self, members: Sequence[Outcome]) -> Advantages:
        self.asked += 1
        ones = np.ones(len(members))
        return Advantages(values=ones * self.asked, weights=ones, **self._extra)

    def state(self) -> int:
        return self.asked

    def restore(self, state: int) -> None:
        self.asked = state


def test_a_group_is_asked_about_once_however_often_its_signal_is_looked_at() -> None:
    rule = Counts()
    bench = Bench(candidates=4, need=2, plugins={"advantage": rule}, tries=30.0, audit_every=1)
    bench.begin()
    bench.tokens(0, 3, "stop")
    bench.ask(0, Enough())
    for member in (1, 2, 3):
        bench.tokens(member, 3 + member, "stop")
    for member in range(4):
        bench.reward(member, float(member % 2))
    bench.ask(0, Finalize((0, 1)))
    assert rule.asked == 1


def test_weight_0_is_not_shown_as_trained_and_advantages_are_on_file() -> None:
    class Pivot:
        def advantages(self, members: Sequence[Outcome]) -> Advantages:
            return Advantages(
                values=np.array([0.5, -0.5]), weights=np.array([1.0, 0.0]), why="pivot: the second"
            )

    bench = Bench(candidates=2, plugins={"advantage": Pivot()}, tries=30.0)
    bench.begin()
    bench.learn(bench.train_one(0))
    [line] = [r.fields for r in only(bench.everything, Report) if r.what == "group"]
    assert [row[5] for row in line["members"]] == [True, False]
    assert line["advantages"] == [(0, 0.5, 1.0), (1, -0.5, 0.0)]
    assert line["advantage_why"] == "pivot: the second"


def test_advantages_of_single_tokens_reach_the_learner() -> None:
    class OfTokens:
        def advantages(self, members: Sequence[Outcome]) -> Advantages:
            return Advantages(
                values=np.zeros(len(members)),
                weights=np.ones(len(members)),
                tokens=tuple(np.arange(m.tokens, dtype=np.float64) for m in members),
            )

    bench = Bench(candidates=2, plugins={"advantage": OfTokens()}, tries=30.0)
    bench.begin()
    [train] = only(bench.train_one(0), TrainGroup)
    assert [floats(m.token_advantages).tolist() for m in train.members] == [
        [0, 1, 2],
        [0, 1, 2, 3],
    ]


@pytest.mark.parametrize(
    "tokens", [(np.ones(3),), (np.ones(3), np.ones(3)), (np.ones(3), np.full(4, np.nan))]
)
def test_advantages_of_tokens_that_do_not_fit_are_refused(tokens: tuple[Any, ...]) -> None:
    bench = Bench(candidates=2, plugins={"advantage": Counts(tokens=tokens)}, tries=30.0)
    bench.begin()
    with pytest.raises(PluginFault, match="advantage Counts, group 0: tokens: .*\\[3, 4\\]"):
        bench.train_one(0)


class OfStep(Counts):
    """Advantage: the mean of the whole step as the baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[int]] = []

    def of_step(self, groups: Sequence[GroupOutcome]) -> Sequence[Advantages]:
        self.steps.append([g.group for g in groups])
        mean = float(np.mean([m.reward for g in groups for m in g.members]))
        return [
            Advantages(
                values=np.array([m.reward - mean for m in g.members]),
                weights=np.ones(len(g.members)),
            )
            for g in groups
        ]


def test_a_rule_for_the_whole_step_is_asked_once_when_the_last_group_is_in() -> None:
    rule = OfStep()
    bench = Bench(candidates=2, need=2, plugins={"advantage": rule}, tries=30.0)
    bench.begin()
    assert not only(bench.train_one(0), TrainGroup), "sent before the step was known"
    sent = only(bench.train_one(1), TrainGroup)
    assert rule.steps == [[0, 1]]
    assert [[m.advantage for m in train.members] for train in sent] == [[0.5, -0.5]] * 2
    bench.learn(sent)
    assert bench.core.step == 1
