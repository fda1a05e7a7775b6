"""Budgets that give candidates by rewards: at first, and in rounds to open groups.

Worked numbers are those of the project's notes on the methods, named by their section.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.plugins import interfaces
from pipeline.plugins.budgets._by_reward import ByRewardOptions
from pipeline.plugins.budgets.dart_gui import DartGui, DartGuiOptions, candidates_at
from pipeline.plugins.budgets.duet import Duet
from pipeline.plugins.budgets.pilot_commit import PilotCommit, PilotCommitOptions
from pipeline.plugins.budgets.reward_variance import RewardVariance
from pipeline.plugins.budgets.xrpo import Xrpo, XrpoOptions, half_width, priority, t_quantile
from pipeline.plugins.testing import budget_view, ended_view, open_view, option_problems
from pipeline.plugins.views import BudgetView, OpenView, PromptView


def prompts(*ids: int, tokens: int = 9) -> list[PromptView]:
    return [PromptView(prompt=i, tokens=tokens) for i in ids]


def candidates(
    budget: interfaces.Budget, ids: Sequence[int], view: BudgetView | None = None
) -> list[int]:
    return [a.candidates for a in budget.allocate(prompts(*ids), view or budget_view(4))]


# --- duet and reward_variance ------------------------------------------------------------------

RATES = {0: [1, 0], 1: [1] * 9 + [0], 2: [1] + [0] * 9, 3: [1, 1]}  # u .25, .09, .09, 0


def test_duet_gives_one_at_a_time_to_the_largest_gain():
    """DUET: 16 in all, 2 to 8 each."""
    duet = Duet()
    for prompt, rewards in RATES.items():
        duet.ended(ended_view(prompt, rewards))
    assert candidates(duet, (0, 1, 2, 3)) == [6, 4, 4, 2]
    assert duet.metrics() == {"total": 16, "known": 4, "unseen": 0}
    notes = [a.note for a in duet.allocate(prompts(0, 3), budget_view(4))]
    assert notes == ["reward 0.50", "reward 1.00"]


def test_reward_variance_follows_the_deviation_of_rewards_of_any_scale():
    budget = RewardVariance(ByRewardOptions(mean=1.5, most=4, least=0.25))
    budget.ended(ended_view(0, [10, 20, 30]))
    budget.ended(ended_view(1, [10, 12, 14]))
    budget.ended(ended_view(2, [5, 5, 5]))
    # deviations 10, 2 and 0: the third keeps the least, 16 are shared five to one
    assert candidates(budget, (0, 1, 2)) == [13, 3, 2]


def test_rewards_are_remembered_as_moving_averages():
    budget = Duet(ByRewardOptions(memory=0.25))
    budget.ended(ended_view(0, [1, 1]))
    budget.ended(ended_view(0, [0, 0]))
    budget.ended(ended_view(0, [1]))  # says nothing of a spread
    assert [a.note for a in budget.allocate(prompts(0), budget_view(4))] == ["reward 0.75"]


def test_a_prompt_never_sampled_resembles_those_of_like_length():
    duet = Duet(ByRewardOptions(neighbours=1))
    duet.ended(ended_view(0, [1, 0], tokens=10))
    duet.ended(ended_view(1, [1, 1], tokens=100))
    [near] = duet.allocate(prompts(7, tokens=20), budget_view(4))
    [far] = duet.allocate(prompts(7, tokens=90), budget_view(4))
    assert (near.note, far.note) == ("reward 0.50", "reward 1.00")
    alike = Duet(ByRewardOptions(neighbours=0))
    alike.restore(duet.state())
    assert [a.note for a in alike.allocate(prompts(7), budget_view(4))] == ["reward 0.75"]


@pytest.mark.parametrize("kind", [Duet, RewardVariance])
def test_all_get_the_same_while_nothing_is_known_and_the_same_after_a_resume(
    kind: type[Duet] | type[RewardVariance],
):
    budget = kind()
    assert candidates(budget, (0, 1, 2)) == [4, 4, 4]
    for prompt, rewards in RATES.items():
        budget.ended(ended_view(prompt, rewards, tokens=prompt))
    resumed = kind()
    resumed.restore(budget.state())
    assert candidates(resumed, (0, 1, 2, 3, 9)) == candidates(budget, (0, 1, 2, 3, 9))
    assert candidates(resumed, (0, 1, 2, 3)) != [4, 4, 4, 4]
    with pytest.raises(ValueError, match="version 2, not 1"):
        budget.restore({"version": 2})


def test_bounds_of_a_small_group_are_two_at_least_and_relaxed_with_it():
    assert candidates(Duet(), (0, 1), budget_view(2)) == [2, 2]
    assert candidates(Duet(ByRewardOptions(least=1.0, mean=1.0)), (0, 1), budget_view(3)) == [3, 3]


def test_idle_slots_top_up_where_that_is_asked_for():
    group = open_view(5, sampled=4, size=4)
    for kind in (Duet, RewardVariance):
        assert kind().top_up([group], 3) == []
        assert kind(ByRewardOptions(top_up="fewest")).top_up([group], 3) == [(5, 3)]


def test_budgets_by_reward_refuse_a_mean_outside_of_its_bounds():
    assert option_problems(ByRewardOptions, mean=3.0) == [
        "mean is 3, expected from least (0.5) to most (2)"
    ]
    assert option_problems(ByRewardOptions, mean=0.0, least=65.0, memory=0.0, neighbours=-1) == [
        "mean: found 0.0, expected above 0 and at most 64",
        "least: found 65.0, expected above 0 and at most 64",
        "memory: found 0.0, expected above 0 and at most 1",
        "neighbours: found -1, expected at least 0",
    ]


# --- dart_gui ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate,expected", [(0.0, 8), (0.5, 8), (0.6, 8), (0.7, 6), (0.8, 4), (1.0, 2)]
)
def test_dart_gui_gives_fewer_to_prompts_that_succeed(rate: float, expected: int):
    """DART-GUI, N = 8."""
    assert candidates_at(rate, 8, 0.6) == expected


def test_dart_gui_limits_a_prompt_by_its_longest_success():
    budget = DartGui()
    assert budget.allocate(prompts(0), budget_view())[0].max_tokens == 128
    budget.ended(ended_view(0, [0, 0], lengths=[90, 80]))
    assert budget.allocate(prompts(0), budget_view())[0].max_tokens == 128  # no success yet
    cut = ended_view(0, [1, 0], lengths=[51, 30, 100], censored=(False, False, True))
    budget.ended(cut)
    assert budget.allocate(prompts(0), budget_view())[0].max_tokens == 62  # 51 x 1.2
    budget.ended(ended_view(0, [1, 1], lengths=[40, 20]))
    resumed = DartGui()
    resumed.restore(budget.state())
    for each in (budget, resumed):
        [allocation] = each.allocate(prompts(0), budget_view())
        assert (allocation.max_tokens, allocation.candidates) == (62, 4)
        assert allocation.note.startswith("success 0.8")  # .7 x 1 + .3 x (.7 x .5 + .3 x 0)
    with pytest.raises(ValueError, match="version None, not 1"):
        resumed.restore({})


def test_dart_gui_says_how_many_prompts_it_knew():
    budget = DartGui()
    budget.ended(ended_view(0, [1, 1], lengths=[40, 20]))
    budget.allocate(prompts(0, 1), budget_view())
    assert budget.metrics() == {"total": 10, "known": 1, "unseen": 1}  # 2 of 8 for the known one


def test_dart_gui_never_exceeds_the_configured_limit():
    budget = DartGui(DartGuiOptions(room=2.0))
    budget.ended(ended_view(0, [1, 1], lengths=[120, 20]))
    assert budget.allocate(prompts(0), budget_view())[0].max_tokens == 128
    assert budget.top_up([open_view(0)], 4) == []


def test_dart_gui_refuses_options_out_of_range():
    assert option_problems(DartGuiOptions, easy=1.0, room=0.9, right=0.0) == [
        "easy: found 1.0, expected from 0 to below 1",
        "room: found 0.9, expected at least 1",
        "right: found 0.0, expected above 0",
    ]


# --- pilot_commit ------------------------------------------------------------------------------


def piloted(group: int, *rewards: float, **given: Any) -> OpenView:
    """A group of M = 8 that is held with two pilots."""
    usual: dict[str, Any] = dict(sampled=2, unended=0, held=True, rewards=rewards)
    return open_view(group, **(usual | given))


def committing(need: int = 2) -> PilotCommit:
    budget = PilotCommit()
    budget.allocate(prompts(0), budget_view(8, need=need))
    return budget


def test_pilot_commit_gives_a_quarter_at_first_and_two_at_least():
    """Pilot-Commit: 32 of 128, 16 of 64."""
    for size, pilots in ((128, 32), (64, 16), (8, 2), (4, 2)):
        assert candidates(PilotCommit(), (0,), budget_view(size)) == [pilots]
    assert candidates(PilotCommit(PilotCommitOptions(pilots=0.5)), (0,), budget_view(8)) == [4]


def test_pilot_commit_commits_to_those_that_vary_most_and_of_equal_ones_to_the_newest():
    groups = [
        piloted(1, 0.4, 0.6, opened=3),
        piloted(2, 0, 1, opened=1),
        piloted(3, 0, 1, opened=2),
        piloted(4, 0, 1, opened=2),
    ]
    assert committing().top_up(groups, 0) == [(4, 6), (3, 6)]
    assert committing(need=9).top_up(groups, 0) == [(4, 6), (3, 6), (2, 6), (1, 6)]
    assert committing(need=9).top_up([piloted(1), piloted(2, 0, 1)], 0) == [(2, 6), (1, 6)]


def test_pilot_commit_commits_to_no_more_than_a_step_trains_on():
    running = open_view(7, sampled=8)
    assert committing().top_up([running, piloted(1, 0, 1), piloted(2, 0, 1)], 0) == [(2, 6)]
    assert committing().top_up([running, running, piloted(1, 0, 1)], 0) == []
    assert PilotCommit().top_up([piloted(1, 0, 1)], 9) == []  # nothing was planned yet


def test_pilot_commit_waits_for_a_round_of_pilots_unless_slots_are_idle():
    undecided = open_view(9, sampled=2)
    groups = [undecided, piloted(1, 0, 1), piloted(2, 0, 1)]
    assert committing().top_up(groups, 0) == []
    assert committing().top_up(groups, 5) == []
    assert committing().top_up(groups, 6) == [(2, 6)]
    assert committing().top_up(groups, 12) == [(2, 6), (1, 6)]


def test_pilot_commit_needs_no_idle_slots_once_three_prompts_are_judged_for_each_of_a_step():
    """Pilot-Commit: pilots for three times the prompts that are trained on."""
    groups = [open_view(9, sampled=2), piloted(1, 0, 1), piloted(2, 0, 1)]
    for planned, given in ((6, []), (7, [(2, 6), (1, 6)])):  # of which one is undecided
        budget = PilotCommit()
        budget.allocate(prompts(*range(planned)), budget_view(8, need=2))
        resumed = PilotCommit()
        resumed.restore(budget.state())
        assert budget.top_up(groups, 0) == resumed.top_up(groups, 0) == given
    sooner = PilotCommit(PilotCommitOptions(judged=1.0))
    sooner.allocate(prompts(0, 1, 2), budget_view(8, need=2))
    assert sooner.top_up(groups, 0) == [(2, 6), (1, 6)]


def test_pilot_commit_goes_on_after_a_resume_before_anything_is_planned():
    resumed = PilotCommit()
    resumed.restore(committing(need=1).state())
    assert resumed.top_up([piloted(1, 0, 1), piloted(2, 0, 1)], 0) == [(2, 6)]
    with pytest.raises(ValueError, match="version 3, not 1"):
        resumed.restore({"version": 3})


def test_pilot_commit_refuses_pilots_that_leave_nothing_to_commit():
    assert option_problems(PilotCommitOptions, pilots=0.95) == [
        "pilots is 0.95, but group.size is 8: none would be left"
    ]
    assert option_problems(PilotCommitOptions, 2) == [
        "pilots is 0.25, but group.size is 2: none would be left"
    ]
    assert option_problems(PilotCommitOptions, pilots=1.0, judged=0.5) == [
        "pilots: found 1.0, expected above 0 and below 1",
        "judged: found 0.5, expected at least 1",
    ]


# --- xrpo --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "freedom,quantile",
    [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (30, 2.042272)],
)
def test_t_quantile(freedom: int, quantile: float):
    assert t_quantile(0.05, freedom) == pytest.approx(quantile, abs=1e-6)


def test_xrpo_gain_of_one_more_reward():
    """XRPO: [1, 1, 0, 0] is served before [1, 0, 0, 0]."""
    even, uneven = 0.577350, 0.5
    assert half_width(even, 4, 0.05) == pytest.approx(0.918693, abs=1e-5)
    assert half_width(even, 5, 0.05) == pytest.approx(0.716875, abs=1e-5)
    without = XrpoOptions(bonus=0.0)
    assert priority(even, 4, 16, without) == pytest.approx(0.201818, abs=1e-5)
    assert priority(uneven, 4, 16, without) == pytest.approx(0.174780, abs=1e-5)
    assert priority(0.0, 4, 16, XrpoOptions()) == pytest.approx(0.084161, abs=1e-6)


def held(group: int, *rewards: float, **given: Any) -> OpenView:
    usual: dict[str, Any] = dict(sampled=len(rewards), unended=0, held=True, rewards=rewards)
    return open_view(group, **(usual | given))


def test_xrpo_begins_with_a_base_round_of_two_at_least():
    assert candidates(Xrpo(), (0, 1), budget_view(8)) == [4, 4]
    assert candidates(Xrpo(XrpoOptions(base=0.1)), (0,), budget_view(8)) == [2]


def test_xrpo_gives_a_round_one_at_a_time_where_the_mean_becomes_surest():
    options = XrpoOptions(bonus=0.0)
    groups = [held(1, 1, 0, 0, 0), held(2, 1, 1, 0, 0), held(3, 0, 0, 0, 0)]
    # 12 are left of 24, half of them in this round. Gains of 2: .202, .111, .071, .050, of 1:
    # .175, .096, .062
    assert dict(Xrpo(options).top_up(groups, 0)) == {1: 3, 2: 3}


def test_xrpo_spends_m_for_each_group_and_no_more():
    one_round = Xrpo(XrpoOptions(rounds=1, bonus=0.0))
    groups = [held(1, 1, 1, 0, 0), held(2, 0, 0, 0, 0)]
    assert sum(n for _, n in one_round.top_up(groups, 0)) == 8
    nearly = [held(1, *[0, 1] * 4), held(2, *[0] * 7)]
    assert one_round.top_up(nearly, 0) == [(1, 1)]
    assert one_round.top_up([held(1, *[0, 1] * 4), held(2, *[0] * 8)], 0) == []


def test_xrpo_gives_a_group_no_more_than_its_most():
    tight = Xrpo(XrpoOptions(rounds=1, bonus=0.0, most=1.25))
    groups = [held(1, 1, 1, 0, 0), held(2, 0, 0, 0, 0)]
    assert tight.top_up(groups, 0) == [(1, 6), (2, 2)]


def test_xrpo_waits_until_every_group_is_held():
    assert Xrpo().top_up([held(1, 1, 0), open_view(2, sampled=4)], 60) == ()
    assert Xrpo().top_up([], 60) == ()


def test_xrpo_serves_a_group_first_of_which_too_few_rewards_came():
    lone = held(1, 1, sampled=4)
    [first, *_] = Xrpo(XrpoOptions(rounds=8)).top_up([held(2, 1, 0, 1, 0), lone], 0)
    assert first[0] == 1


def test_xrpo_refuses_options_out_of_range():
    assert option_problems(XrpoOptions, base=0.0, rounds=0, alpha=1.0, bonus=-1.0, most=0.0) == [
        "base: found 0.0, expected above 0 and at most 1",
        "rounds: found 0, expected at least 1",
        "alpha: found 1.0, expected above 0 and below 1",
        "bonus: found -1.0, expected at least 0",
        "most: found 0.0, expected from 1 to 64",
    ]
