"""Advantages of published methods: their worked numbers, and what they do at the edges."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import product
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages.apriel import Apriel, AprielOptions
from pipeline.plugins.advantages.duet import Duet, DuetOptions
from pipeline.plugins.advantages.gpg import Gpg, GpgOptions
from pipeline.plugins.advantages.grpo import Grpo
from pipeline.plugins.advantages.grpo_lambda import (
    GrpoLambda,
    GrpoLambdaOptions,
    best_groups,
    shortened,
)
from pipeline.plugins.advantages.max_rl import MaxRl, MaxRlOptions
from pipeline.plugins.advantages.mc_grpo import McGrpo, McGrpoOptions
from pipeline.plugins.advantages.nudge import Nudge, NudgeOptions
from pipeline.plugins.advantages.opo import Opo, OpoOptions
from pipeline.plugins.advantages.opob import Opob, OpobOptions
from pipeline.plugins.advantages.reinforce_plus_plus import (
    ReinforcePlusPlus,
    ReinforcePlusPlusOptions,
)
from pipeline.plugins.advantages.rloo import Rloo, RlooOptions
from pipeline.plugins.advantages.xrpo import Xrpo, XrpoOptions, bonus
from pipeline.plugins.interfaces import Advantage, Options
from pipeline.plugins.testing import option_problems, outcomes_of, step_of


def answer(rule: Advantage, rewards: Sequence[float], **given: Any) -> Advantages:
    found = rule.advantages(outcomes_of(rewards, **given))
    assert isinstance(found, Advantages)
    return found


def values(rule: Advantage, rewards: Sequence[float], **given: Any) -> Any:
    return pytest.approx(answer(rule, rewards, **given).values.tolist(), abs=5e-5)


def in_step(rule: Any, *groups: Sequence[float], **given: Any) -> list[Advantages]:
    return list(rule.of_step(step_of(*(outcomes_of(rewards, **given) for rewards in groups))))


# --- baselines -------------------------------------------------------------------------------


def test_rloo_takes_off_the_mean_of_the_others():
    assert values(Rloo(), [1, 0, 0, 0]) == [1, -1 / 3, -1 / 3, -1 / 3]


def test_opo_weighs_its_baseline_by_length():
    assert values(Opo(), [1, 0], tokens=[100, 300]) == [0.75, -0.25]
    assert values(Opo(), [1, 0], tokens=[0, 0]) == [0.5, -0.5], "no token, no weight: the mean"


def test_opob_has_the_baseline_of_the_section_vcpo():
    found = answer(Opob(), [1, 0, 1, 0], weights=[1, 1, 2, 0.5], tokens=[1, 1, 1, 4])
    assert found.values.tolist() == pytest.approx([2 / 7, -5 / 7, 2 / 7, -5 / 7])
    assert found.why == "baseline 0.7143"
    assert found.weights.tolist() == [1, 1, 2, 0.5]


def test_duet_has_the_weighted_baseline_of_its_section():
    found = answer(Duet(), [1, 0, 0], weights=[1, 1, 2])
    assert (found.values * found.weights).tolist() == [0.75, -0.25, -0.5]


def test_max_rl_divides_by_the_success_rate():
    assert values(MaxRl(), [1, 0, 0, 0]) == [3, -1, -1, -1]
    assert values(MaxRl(), [1, 1, 1, 0]) == [1 / 3, 1 / 3, 1 / 3, -1]
    assert values(MaxRl(), [0, 0]) == [0, 0]
    late = answer(MaxRl(MaxRlOptions(overlong_tokens=50)), [1, 0], tokens=[100, 1], max_tokens=100)
    assert late.values.tolist() == [0, 0], "right and at the limit is as good as wrong, not worse"


def test_max_rl_estimates_the_gradient_of_the_log_likelihood_cut_after_n_terms():
    """Over all outcomes of n samples of a policy with success rate p; its score is r - p."""
    p, n = 0.25, 4
    expected = 0.0
    for rewards in product([0, 1], repeat=n):
        chance = np.prod([p if reward else 1 - p for reward in rewards])
        advantages = answer(MaxRl(), rewards).values
        expected += chance * np.mean(advantages * (np.array(rewards) - p))
    cut = (1 - p) * (1 - (1 - p) ** n)  # derivative of sum over k of pass@k / k by the logit
    assert expected == pytest.approx(cut - p * (1 - p) ** n)


# --- over the step ---------------------------------------------------------------------------


def test_gpg_makes_up_for_groups_without_a_signal():
    found = in_step(Gpg(), [1, 0], [1, 1], [0, 1], [1, 0])
    assert [group.values.tolist() for group in found] == [
        pytest.approx([2 / 3, -2 / 3]),
        [0, 0],
        pytest.approx([-2 / 3, 2 / 3]),
        pytest.approx([2 / 3, -2 / 3]),
    ]
    assert found[0].why == "times 1.333: 3 of 4 groups have a signal"
    [nothing] = in_step(Gpg(), [1, 1])
    assert nothing.values.tolist() == [0, 0]


def test_reinforce_plus_plus_is_normalised_over_the_tokens_of_the_step():
    found = in_step(ReinforcePlusPlus(), [1, 0], [1, 1])
    assert found[0].values.tolist() == pytest.approx([2**0.5, -(2**0.5)], abs=1e-4)
    assert found[1].values.tolist() == [0, 0]
    [long] = in_step(ReinforcePlusPlus(), [1, 0], tokens=[3, 1])  # mean .25, deviation .4330
    assert long.values.tolist() == pytest.approx([3**-0.5, -(3**0.5)], abs=1e-4)
    [equal] = in_step(ReinforcePlusPlus(), [1, 1])
    assert equal.values.tolist() == [0, 0]


def test_reinforce_plus_plus_divides_by_a_running_deviation_when_groups_do_not_wait():
    rule = ReinforcePlusPlus(ReinforcePlusPlusOptions(scope="running", window=2))
    assert not hasattr(rule, "of_step")
    assert values(rule, [1, 0]) == [1, -1]
    assert values(rule, [1, 1]) == [0, 0]
    assert values(rule, [1, 0]) == [2**0.5, -(2**0.5)], "the first is out of the window"


def test_a_rule_of_the_step_that_is_copied_is_asked_in_the_copy():
    for rule in (ReinforcePlusPlus(), GrpoLambda(GrpoLambdaOptions(scope="step"))):
        assert copy.deepcopy(rule).of_step.__self__ is not rule


# --- MC-GRPO ---------------------------------------------------------------------------------


def test_mc_grpo_has_the_numbers_and_the_pivot_of_its_section():
    found = answer(McGrpo(), [0, 0.2, 0.5, 0.9, 1])
    assert found.values.tolist() == pytest.approx([-1.5586, -0.9352, 0, 1.2469, 1.5586], abs=5e-5)
    assert found.weights.tolist() == [1, 1, 0, 1, 1]
    assert found.why == "pivot 2: the median, 0.5"


def test_mc_grpo_falls_back_to_the_deviation_and_the_last_of_equals_is_the_pivot():
    found = answer(McGrpo(), [0, 1, 0])
    assert found.weights.tolist() == [1, 1, 0]
    assert found.values.tolist() == pytest.approx([0, 3 / (3**-0.5 + 1e-3), 0])
    plain = answer(McGrpo(McGrpoOptions(scale="none")), [0, 1, 0])
    assert plain.values.tolist() == [0, 3, 0]
    equal = answer(McGrpo(), [1, 1, 1])
    assert equal.values.tolist() == [0, 0, 0]


def test_mc_grpo_of_an_even_group_leaves_nobody_out():
    found = answer(McGrpo(McGrpoOptions(scale="none")), [0, 0, 1, 1])
    assert found.weights.tolist() == [1, 1, 1, 1]
    assert found.values.tolist() == [-0.5, -0.5, 0.5, 0.5]


# --- GRPO-lambda -----------------------------------------------------------------------------


def test_grpo_lambda_has_the_groups_and_the_rewards_of_its_section():
    assert best_groups([1, 0.5, 0.75, 0.25], 0.5) == [0, 2]
    assert shortened(np.array([100.0, 200.0, 300.0]), 0.2).tolist() == pytest.approx(
        [0.954579, 0.9, 0.845421], abs=1e-6
    )
    assert shortened(np.array([50.0]), 0.2).tolist() == [0.9]


def test_grpo_lambda_penalises_length_in_the_best_groups_of_the_step():
    rule = GrpoLambda(GrpoLambdaOptions(scope="step", best=0.5))
    groups = ([1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 0])
    found = in_step(rule, *groups, tokens=[10, 20, 30, 40])
    assert [group.shaped for group in found] == [4, 0, 3, 0]
    assert found[0].values[0] > 0 > found[0].values[3], "short ones gain where all are right"
    assert found[1].values.tolist() == [0.5, -0.5, 0.5, -0.5]
    assert found[0].why == "1.00 right, among the best 2 of 4"


def test_grpo_lambda_compares_with_the_last_groups_when_they_do_not_wait():
    rule = GrpoLambda(GrpoLambdaOptions(drop_equal=True))
    assert not hasattr(rule, "of_step")
    right = outcomes_of([1, 1, 1], tokens=[100, 200, 300])
    assert rule.advantages(right) == NoSignal(why="every reward is 1"), "too few are known"
    for _ in range(15):
        assert values(rule, [1, 0]) == [0.5, -0.5]
    assert values(rule, [1, 1, 1], tokens=[100, 200, 300]) == [0.054579, 0, -0.054579]
    assert answer(rule, [1, 1, 1], tokens=[100, 200, 300]).shaped == 3
    assert rule.advantages(outcomes_of([0, 0])) == NoSignal(why="every reward is 0")


def test_grpo_lambda_of_the_step_keeps_groups_that_are_all_right_until_it_knows():
    rule = GrpoLambda(GrpoLambdaOptions(scope="step", drop_equal=True))
    assert values(rule, [1, 1]) == [0, 0]
    assert isinstance(rule.advantages(outcomes_of([0, 0])), NoSignal)


# --- others ----------------------------------------------------------------------------------


def test_apriel_scales_the_overlong_penalty_as_in_its_section():
    late, short, limit = 14336, 1, 16384

    def first(rewards: list[float], tokens: int) -> float:
        """The shaped reward of the first, where the others have none of the penalty."""
        lengths = [tokens, *[short] * (len(rewards) - 1)]
        found = answer(Apriel(), rewards, tokens=lengths, max_tokens=limit)
        assert found.shaped == (tokens > short)
        return rewards[1] + float(found.values[0] - found.values[1])

    assert first([1, 1, 1, 0], late) == pytest.approx(0.625)
    assert first([1, 0, 0, 0], late) == pytest.approx(0.875)
    assert first([0, 1, 1, 1], late) == pytest.approx(-0.5)
    assert first([1, 0, 0, 0], limit) == pytest.approx(0), "cut at the limit: all of it"
    tight = answer(
        Apriel(AprielOptions(overlong_tokens=10)), [1, 0], tokens=[95, 90], max_tokens=100
    )
    assert tight.values.tolist() == pytest.approx([0.375, -0.375])  # 1 - .5 * .5 against 0


def test_nudge_has_the_numbers_of_its_section():
    hints = ["", "", "a", "a", "b", "b"]
    assert values(Nudge(), [1, 0, 1, 1, 0, 1], variants=hints) == [
        0.6806, -1.3959, 0.7498, 0.7498, -1.4305, 0.6460,
    ]  # fmt: skip


def test_xrpo_sharpens_unlikely_right_answers_as_in_its_section():
    assert (1 + bonus(np.array([1.0]), np.array([0.8]), 2.0, 0.3)).tolist() == [1.3]
    more = 1 - np.exp(-0.4)
    assert values(Xrpo(), [1, 1, 0, 0], confidence=[-0.1, -0.9, -0.5, -0.5]) == [
        0.5, 0.5 + more, -0.5, -0.5,
    ]  # fmt: skip
    wrong = answer(Xrpo(), [1, 0, 0], confidence=[-0.1, -0.9, -0.5])
    assert wrong.values.tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3]), "right ones only"
    assert values(Xrpo(), [1, 1], confidence=[-0.1, -0.9]) == [0, 0]


# --- all of them -----------------------------------------------------------------------------

ALL: list[tuple[Any, type[Options]]] = [
    (Rloo, RlooOptions),
    (Opo, OpoOptions),
    (Opob, OpobOptions),
    (Duet, DuetOptions),
    (MaxRl, MaxRlOptions),
    (Gpg, GpgOptions),
    (ReinforcePlusPlus, ReinforcePlusPlusOptions),
    (McGrpo, McGrpoOptions),
    (GrpoLambda, GrpoLambdaOptions),
    (Apriel, AprielOptions),
    (Nudge, NudgeOptions),
    (Xrpo, XrpoOptions),
]


@pytest.mark.parametrize("rule, options", ALL, ids=lambda value: value.__name__)
def test_groups_without_a_signal_are_dropped_when_asked_and_one_member_always(
    rule: Any, options: Any
):
    assert isinstance(rule().advantages(outcomes_of([1])), NoSignal)
    assert isinstance(rule().advantages([]), NoSignal)
    dropping = rule(options(drop_equal=True))
    assert dropping.advantages(outcomes_of([0, 0])) == NoSignal(why="every reward is 0")


@given(
    rewards=st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=2, max_size=9),
    lengths=st.lists(st.integers(1, 64), min_size=9, max_size=9),
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=9, max_size=9),
)
def test_advantages_are_finite_and_favour_better_answers(
    rewards: list[float], lengths: list[int], weights: list[float]
):
    members = outcomes_of(
        rewards, tokens=lengths, weights=weights, confidence=[-0.01 * n for n in lengths],
        variants=["", "a", "b"] * 3, max_tokens=64,
    )  # fmt: skip
    for rule, _ in ALL:
        found = rule().advantages(members)
        assert isinstance(found, Advantages)
        assert len(found.values) == len(found.weights) == len(members)
        assert np.all(np.isfinite(found.values)) and np.all(found.weights >= 0)
        if rule not in (Apriel, Nudge, GrpoLambda):  # lengths or hints count there
            assert found.values[np.argmax(rewards)] >= found.values[np.argmin(rewards)]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_with_equal_weights_duet_is_grpo(rewards: list[float]):
    assert answer(Duet(), rewards).values.tolist() == pytest.approx(
        answer(Grpo(), rewards).values.tolist()
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReinforcePlusPlus(ReinforcePlusPlusOptions(scope="running")),
        lambda: GrpoLambda(GrpoLambdaOptions()),
    ],
    ids=["reinforce_plus_plus", "grpo_lambda"],
)
def test_a_running_rule_goes_on_exactly_from_its_state(make: Any):
    rule = make()
    for n in range(40):
        rewards = [1.0] * (1 + n % 4) + [0.0] * (n % 3)
        lengths = [10 + 7 * i for i in range(len(rewards))]
        again = make()
        again.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(rule.state())))
        asked = outcomes_of(rewards, tokens=lengths)
        first, second = rule.advantages(asked), again.advantages(asked)
        if isinstance(first, Advantages):
            assert first.values.tolist() == second.values.tolist() and first.why == second.why
        rule = again
    with pytest.raises(ValueError, match="version 0, not 1"):
        rule.restore({"version": 0})


@pytest.mark.parametrize(
    "options, given, complaint",
    [
        (RlooOptions, {"overlong_tokens": -1}, "overlong_tokens: found -1, expected at least 0"),
        (McGrpoOptions, {"scale": "mean"}, "expected one of mad, std, none"),
        (GrpoLambdaOptions, {"best": 1.5}, "best: found 1.5, expected from 0 to 1"),
        (GrpoLambdaOptions, {"window": 0}, "window: found 0, expected at least 1"),
        (GrpoLambdaOptions, {"correct": 0.0}, "correct: found 0.0, expected above 0"),
        (AprielOptions, {"gamma": -1.0}, "gamma: found -1.0, expected at least 0"),
        (AprielOptions, {"failed": -1.0}, "failed: found -1.0, expected at least 0"),
        (NudgeOptions, {"between": -0.1}, "between: found -0.1, expected at least 0"),
        (XrpoOptions, {"cap": -1.0}, "cap: found -1.0, expected at least 0"),
        (ReinforcePlusPlusOptions, {"scope": "batch"}, "expected one of step, running"),
    ],
)
def test_options_out_of_range_are_refused(
    options: type[Options], given: dict[str, Any], complaint: str
):
    [found] = option_problems(options, **given)
    assert complaint in found
