"""Selectors that sample more for a group: in rounds, behind a hint, from a failed member's steps.

Worked numbers are those of the project's notes on the methods, named by their section.
"""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.plugins.actions import Finalize, Hold, Sample
from pipeline.plugins.interfaces import Barrier
from pipeline.plugins.selectors.scope import Scope, ScopeOptions, first_error, good_tokens
from pipeline.plugins.selectors.seele import Seele, SeeleOptions, fitted, share_for
from pipeline.plugins.selectors.xrpo import Xrpo, XrpoOptions
from pipeline.plugins.testing import group_of, option_problems
from pipeline.plugins.views import GroupView
from tests.pipeline.plugins.deciding import chosen, decide, scored_group

# --- xrpo --------------------------------------------------------------------------------------


def test_xrpo_holds_after_each_round_and_trains_on_all_at_the_barrier():
    group = scored_group([1, 0], size=4)
    assert decide(Xrpo(), group) == [Hold(why="mean reward 0.50 of 2", kind="round")]
    held = scored_group([1, 0], size=4, held=True)
    assert decide(Xrpo(), held) == []
    assert chosen(decide(Xrpo(), held, Barrier())) == (0, 1)


def test_xrpo_shows_an_example_once_where_nothing_was_rewarded():
    shows = Xrpo(XrpoOptions(example="example"))
    [action] = decide(shows, scored_group([0, 0], size=4))
    assert action == Sample(
        n=2, variant="example", why="no reward in 2: example is shown", kind="seeded"
    )
    for group in (
        scored_group([0, 0, 0, 0], size=4, variants={2: "example", 3: "example"}),
        scored_group([0, 1], size=4),
    ):
        [action] = decide(shows, group)
        assert isinstance(action, Hold)
    assert isinstance(decide(Xrpo(), scored_group([0, 0], size=4))[0], Hold)


# --- seele -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "floor,middle,share", [(0.1, 0.4, 0.372107), (0.0, 0.4, 0.4), (0.0, 1.2, 1.0)]
)
def test_seele_shows_the_share_at_which_half_are_right(floor: float, middle: float, share: float):
    """SEELE, k = 8."""
    assert share_for(0.5, floor, 8, middle) == pytest.approx(share, abs=1e-6)


def test_seele_fits_the_curve_that_it_has_seen():
    # c + (1 - c) / (1 + exp(-k (x - b))) of c 0, k 8, b .5
    seen = [(0.0, 0.017986, 4), (0.5, 0.5, 4), (0.75, 0.880797, 4)]
    assert fitted(seen) == (0.0, 8.0, 0.5)


def test_seele_begins_with_half_of_the_solution_where_nothing_was_solved():
    [action] = decide(Seele(), scored_group([0, 0], size=8))
    why = "mean reward 0.00 of 2: 0.50 is shown"
    assert action == Sample(n=2, variant="solution:0.50", why=why, kind="hinted")


def test_seele_shows_less_the_more_are_right_and_nothing_at_last():
    def shown(bare: list[float], hinted: list[float], at: str = "solution:0.50") -> str:
        variants = {len(bare) + i: at for i in range(len(hinted))}
        group = scored_group([*bare, *hinted], size=8, variants=variants)
        [action] = decide(Seele(), group)
        assert isinstance(action, Sample)
        assert action.n == 2
        return action.variant

    assert shown([0, 0], [0, 0]) > shown([0, 0], [0, 1]) > shown([0, 0], [1, 1])
    assert shown([1, 1], [1, 1]) == ""
    assert shown([1, 1], []) == ""


def test_seele_trains_on_all_once_m_were_sampled():
    group = scored_group([0, 0, 1, 0], size=4, variants={2: "solution:0.50", 3: "solution:0.50"})
    assert chosen(decide(Seele(), group)) == (0, 1, 2, 3)
    [action] = decide(Seele(SeeleOptions(rounds=3)), scored_group([0, 0, 0], size=4))
    assert isinstance(action, Sample)
    assert action.n == 1  # what is left of the four


def test_seele_refuses_options_out_of_range():
    assert option_problems(SeeleOptions, solution="", rounds=0, target=1.0) == [
        "solution: found '', expected not empty",
        "rounds: found 0, expected at least 1",
        "target: found 1.0, expected above 0.1 and below 1",
    ]


# --- scope -------------------------------------------------------------------------------------


def steps(*scores: float) -> dict[str, float]:
    """Parts of a reward that judges steps of 10 tokens each."""
    parts = {f"step_{k}": score for k, score in enumerate(scores, 1)}
    return parts | {f"end_{k}": 10.0 * k for k in range(1, len(scores) + 1)}


@pytest.mark.parametrize(
    "scores,error,good",
    [((0.9, 0.8, 0.3, 0.7), 3, 20), ((0.3, 0.9), 1, 0), ((0.9, 0.9), 0, 0), ((), 0, 0)],
)
def test_scope_keeps_the_steps_before_the_first_error(
    scores: tuple[float, ...], error: int, good: int
):
    """SCOPE, tau = .5."""
    assert first_error(scores, 0.5) == error
    assert good_tokens(steps(*scores), 0.5) == good


def failing(**given: Any) -> GroupView:
    """One of three is right; the second failed one has more good steps than the first."""
    finished = {0: 20, 1: 40, 2: 40}
    parts = {0: steps(0.9, 0.9), 1: steps(0.9, 0.3, 0.9, 0.9), 2: steps(0.9, 0.8, 0.3, 0.7)}
    return scored_group([1, 0, 0], size=3, finished=finished, parts=parts, **given)


def test_scope_mends_the_failed_member_with_the_longest_good_beginning():
    [action] = decide(Scope(), failing())
    why = "2 of 3 are wrong; 20 tokens of 2 are good"
    assert action == Sample(n=1, fork=(2, 20), why=why, kind="mend")


@pytest.mark.parametrize(
    "reward,ids,kind", [(1.0, (0, 1, 9), "mended"), (0.0, (0, 1, 2), "not_mended")]
)
def test_scope_puts_a_mended_member_in_the_place_of_the_failed_one_if_it_is_right(
    reward: float, ids: tuple[int, ...], kind: str
):
    group = group_of(
        size=3,
        finished={0: 20, 1: 40, 2: 40, 9: 35},
        rewards={0: 1.0, 1: 0.0, 2: 0.0, 9: reward},
        parts={2: steps(0.9, 0.8, 0.3, 0.7)},
        forks={9: 2},
    )
    [action] = decide(Scope(), group)
    assert isinstance(action, Finalize)
    assert (action.ids, action.kind) == (ids, kind)


def test_scope_leaves_groups_alone_that_are_half_right_or_have_nothing_good():
    good, bad = steps(0.9, 0.8, 0.3, 0.7), steps(0.3, 0.9)
    half = scored_group([1, 0], size=2, finished={0: 20, 1: 40}, parts={1: good})
    assert chosen(decide(Scope(), half)) == (0, 1)
    nothing = scored_group([0, 0], size=2, parts={0: bad})
    assert chosen(decide(Scope(), nothing)) == (0, 1)
    strict = Scope(ScopeOptions(threshold=0.85))
    first = scored_group([0, 0], size=2, finished={0: 20, 1: 40}, parts={1: good})
    [action] = decide(strict, first)
    assert isinstance(action, Sample)
    assert action.fork == (1, 10)


def test_scope_refuses_options_out_of_range():
    assert option_problems(ScopeOptions, threshold=0.0, right=0.0) == [
        "threshold: found 0.0, expected above 0 and at most 1",
        "right: found 0.0, expected above 0",
    ]


def test_selectors_say_beforehand_which_columns_they_will_name():
    assert Seele().variants == ("solution",)
    assert Xrpo(XrpoOptions(example="shown")).variants == ("shown",)
    assert Xrpo().variants == ()
