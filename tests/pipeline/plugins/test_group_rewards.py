"""Rewards that judge a whole group: the vote, its options, and sums with one of them in it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.plugins import registry
from pipeline.plugins.actions import Score
from pipeline.plugins.rewards._results import group_outcomes
from pipeline.plugins.testing import option_problems, sample_of
from pipeline.plugins.views import Sampled


def reward(name: str, **options: Any) -> Any:
    cls = registry.find_plugin("reward", name)
    return cls(msgspec.convert(options, registry.options_type(cls)))


def group(*responses: str, **fields: Any) -> list[Sampled]:
    return [sample_of(response, **fields) for response in responses]


def values(outcomes: Any) -> list[float]:
    return [outcome.value for outcome in outcomes]


def test_the_answer_of_most_members_is_right() -> None:
    found = reward("majority").score_group(group("a#16", "b# 16 ", "c#17", "d#18", "e"))
    assert values(found) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert found[0].parts == {"majority": 0.4}


def test_of_equally_many_votes_those_that_came_first_win() -> None:
    assert values(reward("majority").score_group(group("#2", "#1", "#1", "#2"))) == [1, 0, 0, 1]


def test_a_cut_response_and_one_without_an_answer_have_no_vote() -> None:
    samples = [*group("#2"), *group("#1", "#1", finish="length"), *group("none", "#")]
    assert values(reward("majority").score_group(samples)) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert values(reward("majority").score_group(group("none", "#"))) == [0.0, 0.0]


@pytest.mark.parametrize(
    "response, answer",
    [
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{3}, no: \boxed{4}", "4"),
        (r"\boxed{4", ""),
        ("4", ""),
    ],
)
def test_a_boxed_answer_is_the_content_of_the_last_box(response: str, answer: str) -> None:
    judge = reward("majority", graded="boxed")
    found = judge.score_group(group(response, rf"\boxed{{{answer or 'x'}}}"))
    assert values(found)[0] == float(bool(answer))


def test_a_small_majority_gives_no_reward_at_all() -> None:
    judge = reward("majority", least=0.5)
    assert judge.score_group(group("#1", "#2", "#3")) == [None, None, None]
    assert values(judge.score_group(group("#1", "#1", "#3"))) == [1.0, 1.0, 0.0]
    assert option_problems(type(judge).Options, least=1.5)


def test_an_evaluation_compares_with_the_answer_of_the_data() -> None:
    judge = reward("majority")
    assert judge.score(sample_of("x#16", answer="16")) == 1.0
    assert judge.score(sample_of("x#16", answer="17")) == 0.0
    assert judge.score(sample_of("x", answer="")) == 0.0


def test_a_sum_with_a_vote_in_it_judges_groups_and_one_without_does_not() -> None:
    def judges(*parts: Any) -> bool:
        cls = registry.find_plugin("reward", "sum")
        return registry.judges_groups(cls, msgspec.convert({"of": parts}, cls.Options))

    assert judges({"majority": {}, "weight": 2}, "exact")
    assert not judges("exact")
    assert registry.judges_groups(*_named("majority"))
    assert not registry.judges_groups(*_named("exact"))
    both = reward("sum", of=[{"majority": {}, "weight": 2}, {"exact": {}}])
    found = group_outcomes(both, group("#1", "#1", "#2", answer="2"))
    assert found == [
        Score(2.0, {"majority": 1.0, "majority/majority": 2 / 3, "exact": 0.0}),
        Score(2.0, {"majority": 1.0, "majority/majority": 2 / 3, "exact": 0.0}),
        Score(1.0, {"majority": 0.0, "majority/majority": 2 / 3, "exact": 1.0}),
    ]


def _named(name: str) -> Any:
    cls = registry.find_plugin("reward", name)
    return cls, cls.Options()


def test_a_group_call_fails_for_all_or_none() -> None:
    class Short:
        def score_group(self, samples: Any) -> list[float]:
            return [1.0]

    class Odd:
        async def score_group(self, samples: Any) -> list[Any]:
            return [1.0, float("nan"), None]

    short = group_outcomes(Short(), group("a", "b"))
    assert [str(error) for error in short] == ["returned 1 rewards for 2 responses"] * 2
    fine, bad, silent = group_outcomes(Odd(), group("a", "b", "c"))
    assert fine == Score(1.0, {})
    assert isinstance(bad, ValueError)
    assert silent is None
