"""Selectors that act while members run: what they stop, park, prune and begin again.

Worked numbers are those of the project's notes on the methods, named by their section.
"""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Abort, Drop, Park, Sample, Stop
from pipeline.plugins.interfaces import Barrier, Every, WeightsPublished
from pipeline.plugins.selectors.april import April
from pipeline.plugins.selectors.arrol import Arrol
from pipeline.plugins.selectors.dot import Dot, DotOptions, threshold
from pipeline.plugins.selectors.duet import Duet
from pipeline.plugins.selectors.echo import Echo
from pipeline.plugins.selectors.sorted_rl import SortedRl, SortedRlOptions
from pipeline.plugins.selectors.ulorl import Ulorl, UlorlOptions
from pipeline.plugins.testing import group_of, option_problems
from pipeline.plugins.views import GroupView
from tests.pipeline.plugins.deciding import chosen, decide


@pytest.mark.parametrize("selector", [Dot(), April(), Ulorl(), SortedRl(), Arrol(), Duet(), Echo()])
def test_what_is_left_is_trained_on_when_all_have_ended(selector: interfaces.Selector):
    group = group_of(size=3, finished={4: 10, 1: 20}, truncated={2: 99}, failed=[1])
    assert chosen(decide(selector, group)) == (4, 2)
    lone = group_of(size=3, finished={4: 10, 1: 20}, failed=[1])
    assert isinstance(decide(selector, lone)[0], Drop)
    waiting = group_of(size=2, finished={4: 10, 1: 20}, queued={5: 0})
    assert decide(selector, waiting) == []


# --- dot ---------------------------------------------------------------------------------------


def test_dot_threshold_is_mean_and_three_deviations():
    """DOT: fifteen of 100 and one of 1700; with eight, three deviations are never reached."""
    assert threshold([100] * 15 + [1700], 3) == pytest.approx(1361.895, abs=1e-3)
    assert threshold([100] * 7 + [100_000], 3) > 100_000
    assert threshold([100] * 7, 3, 0.1) == pytest.approx(130)


def all_but_one(tokens: int, wrong: int = 0, **given: Any) -> GroupView:
    finished = dict.fromkeys(range(7), 100)
    rewards = {i: float(i >= wrong) for i in finished}
    return group_of(size=8, finished=finished, rewards=rewards, running={7: tokens}, **given)


def test_dot_stops_the_last_one_when_it_runs_on_beyond_the_others_that_are_all_right():
    assert decide(Dot(), all_but_one(130), Every(trajectory=7)) == []
    why = "131 tokens; the 7 others are right by 130"
    assert decide(Dot(), all_but_one(131), Every(trajectory=7)) == [
        Stop(ids=(7,), why=why, kind="outlier")
    ]
    two = Dot(DotOptions(deviations=2, least_deviation=0.05))
    assert decide(two, all_but_one(111), Every(trajectory=7))


def test_dot_leaves_every_other_group_alone():
    assert decide(Dot(), all_but_one(900, wrong=1), Every(trajectory=7)) == []
    assert decide(Dot(), all_but_one(900, queued={8: 0}), Every(trajectory=7)) == []
    finished, unscored = dict.fromkeys(range(7), 100), dict.fromkeys(range(6), 1.0)
    group = group_of(size=8, finished=finished, rewards=unscored, running={7: 900})
    assert decide(Dot(), group, Every(trajectory=7)) == []
    lenient = Dot(DotOptions(right=0.5))
    half = group_of(size=3, finished={1: 9, 2: 9}, rewards={1: 0.5, 2: 1.0}, running={3: 90})
    assert decide(Dot(), half, Every(trajectory=3)) == []
    assert decide(lenient, half, Every(trajectory=3))


def test_dot_refuses_options_out_of_range():
    assert option_problems(DotOptions, deviations=0.0, least_deviation=-1.0, every=0) == [
        "deviations: found 0.0, expected above 0",
        "least_deviation: found -1.0, expected from 0 to 1",
        "every: found 0, expected at least 1",
    ]


# --- april -------------------------------------------------------------------------------------


def test_april_parks_the_unfinished_when_the_step_has_its_groups():
    """APRIL: at t = 5 those of 9 and 20 tokens hold 5 each and are kept."""
    running = {0: 5, 3: 5}
    group = group_of(size=2, running=running, parked={4: 2}, waiting_env={5: 1}, max_staleness=1)
    [park] = decide(April(), group, Barrier())
    assert isinstance(park, Park)
    assert (park.ids, park.until, park.kind) == ((0, 3, 5), "published", "partial")
    assert decide(April(), group) == []
    asleep = group_of(size=2, parked={4: 2}, max_staleness=1)
    assert decide(April(), asleep, Barrier()) == []


def test_april_parks_no_group_that_could_not_be_trained_on_later():
    due = group_of(size=2, running={0: 5}, max_staleness=1, due=True)
    assert decide(April(), due, Barrier()) == []
    assert decide(April(), group_of(size=2, running={0: 5}), Barrier()) == []


# --- ulorl -------------------------------------------------------------------------------------

SEGMENTS = Ulorl(UlorlOptions(segment=16))


def test_ulorl_parks_a_response_at_the_end_of_each_segment():
    """UloRL, segments of 16: one of 40 tokens is parked at 16 and at 32."""
    assert SEGMENTS.wants.every == 16
    for tokens, segment in ((16, 1), (32, 2)):
        group = group_of(size=2, running={7: tokens, 8: 15}, max_staleness=4)
        assert decide(SEGMENTS, group, Every(trajectory=7)) == [
            Park(ids=(7,), until="published", why=f"segment {segment} is full", kind="segment")
        ]
    between = group_of(size=2, finished={8: 9}, running={7: 40}, max_staleness=4)
    assert decide(SEGMENTS, between) == []


def test_ulorl_lets_a_group_run_through_that_could_not_be_trained_on_later():
    cases: list[dict[str, Any]] = [{"max_staleness": 4, "due": True}, {"max_staleness": 0}]
    for given in cases:
        group = group_of(size=2, running={7: 16}, **given)
        assert decide(SEGMENTS, group, Every(trajectory=7)) == []
    parked = group_of(size=2, parked={7: 16}, max_staleness=4)
    assert decide(SEGMENTS, parked, Every(trajectory=7)) == []


def test_ulorl_refuses_an_empty_segment():
    assert option_problems(UlorlOptions, segment=0) == ["segment: found 0, expected at least 1"]


# --- sorted_rl ---------------------------------------------------------------------------------


def carried(**given: Any) -> GroupView:
    """Two have ended and two run, at version 5; the oldest tokens are two versions old."""
    return group_of(
        size=4,
        finished={1: 10, 2: 10},
        running={3: 9, 4: 4},
        queued={5: 0},
        versions={1: (3, 4), 2: (4,), 3: (3, 4, 5), 4: (5,)},
        version=5,
        **given,
    )


def test_sorted_rl_samples_anew_before_the_publish_what_would_be_too_old_after_it():
    old = carried(max_staleness=2, due=True)
    for mode in ("cached", "strict"):
        [abort, sample] = decide(SortedRl(SortedRlOptions(mode=mode)), old, Barrier())
        assert isinstance(abort, Abort)
        assert isinstance(sample, Sample)
        assert (abort.ids, sample.n) == ((1, 3), 2)
        assert abort.kind == sample.kind == "restarted"


def test_sorted_rl_cached_carries_everything_else_over():
    """SortedRL, cached: the tokens of version 0 are kept."""
    assert SortedRl().wants.published is False
    young = carried(max_staleness=4)
    assert decide(SortedRl(), young, Barrier()) == []
    assert decide(SortedRl(), young, WeightsPublished()) == []
    assert decide(SortedRl(), carried(due=True), Barrier()) == []  # on-policy: none are carried


def test_sorted_rl_strict_begins_the_unfinished_again():
    """SortedRL, strict: what the unfinished hold is waste (4 tokens there, 9 + 4 here)."""
    strict = SortedRl(SortedRlOptions(mode="strict"))
    assert strict.wants.published is True
    [abort, sample] = decide(strict, carried(max_staleness=4), WeightsPublished())
    assert isinstance(abort, Abort)
    assert isinstance(sample, Sample)
    assert (abort.ids, sample.n) == ((3, 4), 2)
    assert decide(strict, group_of(size=2, queued={1: 0, 2: 0}), WeightsPublished()) == []
