"""Budgets that follow the number of the step, and those that give members prompts of their own.

Worked numbers are those of the project's notes on the methods, named by their section.
"""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.plugins.budgets.nudge import Nudge, NudgeOptions
from pipeline.plugins.budgets.seele import Seele, SeeleOptions
from pipeline.plugins.budgets.siri import Siri, SiriOptions, limit_at
from pipeline.plugins.budgets.tti import Tti, TtiOptions
from pipeline.plugins.testing import budget_view, open_view, option_problems
from pipeline.plugins.views import PromptView

PROMPT = PromptView(prompt=3, tokens=9)

# --- siri --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step,limit",
    [(0, 16384), (80, 15184), (160, 12288), (320, 8192), (480, 12288), (640, 16384)],
)
def test_siri_moves_the_limit_along_a_cosine(step: int, limit: int):
    """SIRI, T 640, between 16384 and 8192."""
    budget = Siri()
    [allocation] = budget.allocate([PROMPT], budget_view(8, step=step, max_tokens=16384))
    assert allocation.max_tokens == limit == limit_at(step, 16384, SiriOptions())
    assert (allocation.candidates, allocation.note) == (8, f"limit {limit}")
    assert budget.metrics() == {"limit": limit}


def test_siri_in_stairs_and_with_a_stair_down():
    stair = SiriOptions(shape="stair", period=8, low=0.25)
    assert [limit_at(step, 100, stair) for step in (0, 3, 4, 7, 8)] == [100, 100, 25, 25, 100]
    mixed = SiriOptions(shape="stair_cosine", period=8, low=0.5)
    assert [limit_at(step, 100, mixed) for step in (0, 3, 4, 6, 8)] == [50, 50, 50, 75, 50]


def test_scheduled_budgets_top_up_where_that_is_asked_for():
    group = open_view(5)
    for idle in (Siri(), Tti()):
        assert idle.top_up([group], 3) == []
    for busy in (Siri(SiriOptions(top_up="fewest")), Tti(TtiOptions(top_up="fewest"))):
        assert busy.top_up([group], 3) == [(5, 3)]


def test_siri_refuses_options_out_of_range():
    found = option_problems(SiriOptions, shape="sine", period=0, low=0.0)
    assert found[0].startswith("shape: found 'sine', expected one of cosine, stair, stair_cosine")
    assert found[1:] == [
        "period: found 0, expected at least 1",
        "low: found 0.0, expected above 0 and at most 1",
    ]


# --- tti ---------------------------------------------------------------------------------------


def test_tti_lengthens_the_horizon_from_iteration_to_iteration():
    """TTI, iterations 1 to 5: 10, 20, 20, 30, 30 turns."""

    def limits(**given: Any) -> list[int]:
        budget = Tti(TtiOptions(**given))
        views = [budget_view(8, step=step, max_tokens=300) for step in range(5)]
        return [budget.allocate([PROMPT], view)[0].max_tokens for view in views]

    assert limits() == [100, 200, 200, 300, 300]
    assert limits(iteration=2) == [100, 100, 200, 200, 200]
    assert limits(turns=(1, 3)) == [100, 300, 300, 300, 300]
    budget = Tti()
    [allocation] = budget.allocate([PROMPT], budget_view(4, max_tokens=60))
    assert (allocation.candidates, allocation.note) == (4, "10 turns, 20 tokens")
    assert budget.metrics() == {"limit": 20}


def test_tti_refuses_options_out_of_range():
    assert option_problems(TtiOptions, iteration=0) == ["iteration: found 0, expected at least 1"]
    assert option_problems(TtiOptions, turns=()) == [
        "turns: found (), expected one or more, each at least 1"
    ]
    assert option_problems(TtiOptions, turns=(10, 0)) == [
        "turns: found (10, 0), expected one or more, each at least 1"
    ]


# --- seele -------------------------------------------------------------------------------------


def test_seele_begins_with_the_first_of_its_rounds():
    for rounds, size, first in ((4, 8, 2), (3, 8, 3), (1, 8, 8)):
        budget = Seele(SeeleOptions(rounds=rounds))
        [allocation] = budget.allocate([PROMPT], budget_view(size))
        assert (allocation.candidates, allocation.variants) == (first, ())
        assert budget.top_up([open_view(1)], 9) == ()


def test_seele_refuses_more_rounds_than_members():
    assert option_problems(SeeleOptions, rounds=9) == [
        "rounds is 9, but group.size is 8: at most 8"
    ]
    assert option_problems(SeeleOptions, rounds=0) == ["rounds: found 0, expected at least 1"]


# --- nudge -------------------------------------------------------------------------------------


def hinted(prompt: int, step: int = 1, size: int = 8, **given: Any) -> dict[str, int]:
    """How many of a prompt's candidates are sampled with each hint."""
    budget = Nudge(NudgeOptions(**given))
    view = budget_view(size, step=step)
    [allocation] = budget.allocate([PromptView(prompt=prompt, tokens=9)], view)
    assert allocation.candidates == size
    found = {variant: count for count, variant in allocation.variants}
    assert allocation.note == f"{size - sum(found.values())} without a hint"
    assert all(found.values())
    return found


def test_nudge_gives_each_hint_an_equal_part_of_which_coins_take_some():
    """NudgeRL: two hints of four candidates, coins of 1/2."""
    counts = [hinted(prompt) for prompt in range(200)]
    for hint in ("hint_1", "hint_2"):
        of_hint = [count.get(hint, 0) for count in counts]
        assert set(of_hint) == {0, 1, 2, 3, 4}
        assert 1.7 < sum(of_hint) / len(of_hint) < 2.3
    assert hinted(1, without=0.0) == {"hint_1": 4, "hint_2": 4}
    assert hinted(1, without=1.0) == {}
    assert hinted(1, size=7, without=0.0, hints=("a", "b", "c")) == {"a": 2, "b": 2, "c": 2}


def test_nudge_throws_its_coins_by_seed_step_and_prompt():
    counts = [hinted(prompt) for prompt in range(20)]
    assert [hinted(prompt) for prompt in range(20)] == counts
    assert [hinted(prompt, step=2) for prompt in range(20)] != counts
    assert [hinted(prompt, seed=1) for prompt in range(20)] != counts
    assert Nudge().top_up([open_view(1)], 9) == ()


def test_nudge_refuses_more_hints_than_members():
    assert option_problems(NudgeOptions, 2, hints=("a", "b", "c")) == [
        "hints are 3, but group.size is 2: at most that many"
    ]
    assert option_problems(NudgeOptions, without=1.5, seed=-1) == [
        "without: found 1.5, expected from 0 to 1",
        "seed: found -1, expected at least 0",
    ]
    assert option_problems(NudgeOptions, hints=()) == [
        "hints: found (), expected one or more, none of them empty"
    ]


def test_plugins_say_beforehand_which_columns_they_will_name():
    assert Nudge(NudgeOptions(hints=("a", "b"))).variants == ("a", "b")
