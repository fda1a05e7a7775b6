"""Selectors that decide by rewards: what each waits for, chooses, samples more of.

Worked numbers are those of the project's notes on the methods, named by their section.
"""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Defer, Drop, Finalize, Hold, Sample
from pipeline.plugins.interfaces import Barrier, Finish, WeightsPublished
from pipeline.plugins.selectors._choosing import by_reward, reward_of, scored
from pipeline.plugins.selectors.dars import Dars, DarsOptions, second_stage
from pipeline.plugins.selectors.extremes import Extremes
from pipeline.plugins.selectors.gfpo import Gfpo, GfpoOptions
from pipeline.plugins.selectors.pilot_commit import PilotCommit, PilotCommitOptions, most_varied
from pipeline.plugins.selectors.scope import Scope
from pipeline.plugins.selectors.seele import Seele
from pipeline.plugins.selectors.xrpo import Xrpo
from pipeline.plugins.testing import group_of, option_problems
from pipeline.plugins.views import EndedView, GroupView
from tests.pipeline.plugins.deciding import chosen, decide, scored_group


@pytest.mark.parametrize(
    "selector", [Extremes(), Gfpo(), Dars(), PilotCommit(), Xrpo(), Seele(), Scope()]
)
def test_nothing_is_decided_while_a_member_runs_or_a_reward_is_to_come(
    selector: interfaces.Selector,
):
    running = scored_group([1, 0, 1], size=2, running={7: 3})
    assert decide(selector, running, Finish(trajectory=0)) == []
    assert decide(selector, running, Barrier()) == []
    to_come = group_of(size=2, finished={1: 10, 2: 20}, rewards={1: 1.0})
    assert decide(selector, to_come) == []
    # one that failed is waited for no more
    assert decide(selector, group_of(size=2, finished={1: 1, 2: 2}, rewards={1: 1.0}, failed=[2]))


# --- extremes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rewards,ids",
    [([0.9, 0.1, 0.5, 0.7, 0.3, 0.2], (0, 1, 3, 5)), ([1, 0, 0, 0, 0, 0], (0, 1, 2, 3))],
)
def test_extremes_takes_the_best_and_the_worst_with_ties_by_arrival(
    rewards: list[float], ids: tuple[int, ...]
):
    """Sol-RL."""
    assert chosen(decide(Extremes(), scored_group(rewards, size=4))) == ids


def test_extremes_gives_the_odd_one_to_the_best_and_takes_all_of_a_small_group():
    assert chosen(decide(Extremes(), scored_group([0, 1, 1, 0, 0.5], size=3))) == (0, 1, 2)
    assert chosen(decide(Extremes(), scored_group([0, 1], size=4))) == (0, 1)
    lone = group_of(size=2, finished={1: 1, 2: 2}, rewards={1: 1.0}, failed=[2])
    assert isinstance(decide(Extremes(), lone)[0], Drop)


# --- gfpo --------------------------------------------------------------------------------------


def test_gfpo_takes_the_shortest_or_the_largest_reward_per_token():
    group = scored_group([1, 1, 0, 0.5], size=2, finished={0: 100, 1: 300, 2: 50, 3: 40})
    by_length = Gfpo(GfpoOptions(by="length"))
    assert chosen(decide(by_length, group)) == (3, 2)
    assert chosen(decide(Gfpo(), group)) == (3, 0)  # .0125, .01, .0033, 0


def test_gfpo_counts_truncated_candidates_and_breaks_ties_by_arrival():
    group = group_of(size=2, finished={5: 10}, truncated={3: 10, 4: 9}, rewards={3: 0, 4: 0, 5: 0})
    assert chosen(decide(Gfpo(), group)) == (5, 3)
    assert chosen(decide(Gfpo(GfpoOptions(by="length")), group)) == (4, 5)


# --- dars --------------------------------------------------------------------------------------

HARDNESS = DarsOptions(schedule="hardness", most=8)


@pytest.mark.parametrize(
    "accuracy,equal,hardness",
    [(0, 24, 56), (0.125, 11, 24), (0.25, 3, 8), (0.375, 1, 3), (0.5, 0, 0), (0.75, 0, 0)],
)
def test_dars_second_stage(accuracy: float, equal: int, hardness: int):
    """DARS, N = 8: ET with at most 32, HW with at most 64."""
    assert second_stage(accuracy, 8, DarsOptions()) == equal
    assert second_stage(accuracy, 8, HARDNESS) == hardness


def test_dars_aims_higher_where_the_advantage_divides_by_the_deviation():
    divided = DarsOptions(divide_by_deviation=True)
    # 2 sqrt(.25 .75) = .866: (8 - 8 .866) / .866 = 1.24
    assert second_stage(0.25, 8, divided) == 2
    assert second_stage(0.0, 8, divided) == 9  # .484: (8 - 3.873) / .484 = 8.52


def test_dars_samples_a_second_stage_once_and_trains_on_both():
    group = scored_group([1, 0, 0, 0, 0, 0, 0, 0], size=8)
    [action] = decide(Dars(), group)
    assert action == Sample(n=11, why="accuracy 0.12 of the first 8", kind="second_stage")
    # the others are right, but the first eight decide: no third stage
    whole = scored_group([1, *[0] * 7, *[1] * 11], size=8)
    [action] = decide(Dars(), whole)
    assert isinstance(action, Finalize)
    assert (len(action.ids), action.kind) == (19, "second_stage")
    [action] = decide(Dars(), scored_group([1] * 4 + [0] * 4, size=8))
    assert isinstance(action, Finalize)
    assert (len(action.ids), action.kind) == (8, "")


def test_dars_counts_candidates_that_a_budget_gave_beyond_m():
    [action] = decide(Dars(), scored_group([1, *[0] * 11], size=8))
    assert isinstance(action, Sample)
    assert action.n == 7  # 8 + 11 in all


@pytest.mark.parametrize("most", [0.5, 65.0])
def test_dars_refuses_a_bound_out_of_range(most: float):
    assert option_problems(DarsOptions, most=most) == [f"most: found {most}, expected from 1 to 64"]


# --- pilot_commit ------------------------------------------------------------------------------


def pilots(right: int, of: int = 32, **given: Any) -> GroupView:
    return scored_group([1] * right + [0] * (of - right), size=128, **given)


@pytest.mark.parametrize(
    "right,answer,kind",
    [
        (0, Defer, "hard"),
        (1, Defer, "hard"),
        (3, Defer, "hard"),
        (4, Hold, "pilots"),
        (24, Hold, "pilots"),
        (25, Drop, "easy"),
        (31, Drop, "easy"),
        (32, Drop, "solved"),
    ],
)
def test_pilot_commit_judges_a_prompt_by_its_pilots(right: int, answer: type, kind: str):
    """Pilot-Commit, low .125, up .25, excluded at 1."""
    [action] = decide(PilotCommit(), pilots(right))
    assert (type(action), action.kind) == (answer, kind)


def test_pilot_commit_says_hold_once_and_drops_a_group_that_has_waited_too_long():
    versions = dict.fromkeys(range(32), (3,))
    for version, kinds in ((3, []), (7, []), (8, ["old"])):
        group = pilots(16, held=True, version=version, max_staleness=8, versions=versions)
        assert [a.kind for a in decide(PilotCommit(), group, WeightsPublished())] == kinds
    sooner = PilotCommit(PilotCommitOptions(oldest=3))
    group = pilots(16, held=True, version=7, max_staleness=8, versions=versions)
    [action] = decide(sooner, group, WeightsPublished())
    assert isinstance(action, Drop)


def test_pilot_commit_drops_at_the_barrier_what_no_later_step_could_train_on():
    versions = dict.fromkeys(range(32), (3,))
    given: dict[str, Any] = {"held": True, "version": 7, "versions": versions}
    due = pilots(16, max_staleness=4, due=True, **given)
    [action] = decide(PilotCommit(), due, Barrier())
    assert isinstance(action, Drop)
    assert action.kind == "old"
    assert decide(PilotCommit(), due, WeightsPublished()) == []
    assert decide(PilotCommit(), pilots(16, max_staleness=5, **given), Barrier()) == []
    on_policy = pilots(16, due=True, **given)  # given back by the core, not lost
    assert decide(PilotCommit(), on_policy, Barrier()) == []


def test_pilot_commit_trains_on_pilots_and_commits_of_any_age():
    versions = {0: (1,), 1: (1,), 2: (9,), 3: (9,)}
    group = scored_group([1, 0, 1, 0], size=4, held=True, version=9, versions=versions)
    [action] = decide(PilotCommit(), group)
    assert isinstance(action, Finalize)
    assert (action.ids, action.kind) == ((0, 1, 2, 3), "committed")


def test_pilot_commit_waits_for_commits_and_drops_pilots_without_any_reward():
    committed = scored_group([1, 0], size=4, held=True, queued={7: 0, 8: 0})
    assert decide(PilotCommit(), committed) == []
    [action] = decide(PilotCommit(), group_of(size=4, finished={1: 1, 2: 2}, failed=[1, 2]))
    assert isinstance(action, Drop)


@pytest.mark.parametrize(
    "rewards,right", [([1, 1, 1, 0, 0, 0, 0, 0], 2), ([1, 0, 0, 0, 0, 0, 0, 0], 1)]
)
def test_pilots_are_thinned_to_those_that_vary_most(rewards: list[float], right: int):
    """Pilot-Commit, eight pilots to four."""
    kept = most_varied(scored(scored_group(rewards, size=16)), 4)
    assert len(kept) == 4
    assert sum(map(reward_of, kept)) == right


def test_pilot_commit_keeps_few_pilots_also_after_a_resume():
    options = PilotCommitOptions(pilots_kept=2)
    selector = PilotCommit(options)
    [hold] = decide(selector, scored_group([0.2, 1, 0, 0.5], size=6))
    assert isinstance(hold, Hold)
    resumed = PilotCommit(options)
    resumed.restore(selector.state())
    whole = scored_group([0.2, 1, 0, 0.5, 0.3, 0.4], size=6, held=True)
    for each in (selector, resumed):
        assert chosen(decide(each, whole)) == (1, 2, 4, 5)
    resumed.ended(EndedView(prompt=1, tokens=1, tag="", lengths=(), censored=(), group=1))
    assert resumed.state() == {"version": 1, "pilots": []}
    assert chosen(decide(PilotCommit(), whole)) == (0, 1, 2, 3, 4, 5)
    with pytest.raises(ValueError, match="version 2, not 1"):
        resumed.restore({"version": 2})


def test_pilot_commit_refuses_limits_that_keep_nobody():
    assert option_problems(PilotCommitOptions, low=0.8, up=0.25) == [
        "low is 0.8, but up is 0.25: at most 0.75"
    ]
    assert option_problems(PilotCommitOptions, low=-0.1, oldest=-1) == [
        "low: found -0.1, expected from 0 to 1",
        "oldest: found -1, expected at least 0",
    ]


def test_best_and_worst_stay_in_order_of_arrival():
    members = scored(scored_group([0, 1, 0, 1, 0.5], size=4))
    assert [m.id for m in by_reward(members, 1, 1)] == [0, 1]
    assert [m.id for m in by_reward(members, 0, 5)] == [0, 1, 2, 3, 4]
