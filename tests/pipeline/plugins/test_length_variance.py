"""Budget `length_variance`: what it learns from groups, and what it then gives to prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.hardware.latency_model import LatencyModel
from pipeline.plugins import registry
from pipeline.plugins.actions import Allocation
from pipeline.plugins.budgets._censored import fit_lognormal, lognormal, moments
from pipeline.plugins.budgets._utility import Lengths, Utility
from pipeline.plugins.budgets.length_variance import LengthVariance, LengthVarianceOptions
from pipeline.plugins.testing import option_problems
from pipeline.plugins.views import BudgetView, EndedView, OpenView, PromptView
from tests.pipeline.coordinator.world import World, plugins_of, settings_of

CURVE = LatencyModel(((1, 0.010), (32, 0.012), (64, 0.020)))
QUIET, LOUD = (98, 99, 100, 101, 102, 100), (20, 60, 100, 140, 180, 100)


def view(
    *, size: int = 8, need: int = 4, engines: int = 1, slots: int = 64, max_tokens: int = 512
) -> BudgetView:
    return BudgetView(
        step=1, size=size, max_tokens=max_tokens, need=need, engines=engines, slots=slots,
        latency=CURVE,
    )  # fmt: skip


def prompts(*ids: int, tokens: int = 9, tag: str = "") -> list[PromptView]:
    return [PromptView(prompt=i, tokens=tokens, tag=tag) for i in ids]


def ended(
    prompt: int, lengths: Sequence[int], cut: Sequence[int] = (), tokens: int = 9, tag: str = ""
) -> EndedView:
    """A group with these finished, and these cut short."""
    return EndedView(
        prompt=prompt,
        tokens=tokens,
        tag=tag,
        lengths=(*lengths, *cut),
        censored=(*[False] * len(lengths), *[True] * len(cut)),
    )


def budget(*groups: EndedView, **options: Any) -> LengthVariance:
    found = LengthVariance(LengthVarianceOptions(**options))
    for group in groups:
        found.ended(group)
    return found


def candidates(of: LengthVariance, ids: Sequence[int], at: BudgetView | None = None) -> list[int]:
    return [a.candidates for a in of.allocate(prompts(*ids), at or view())]


def sigma(of: LengthVariance, prompt: int) -> float:
    [allocation] = of.allocate(prompts(prompt), view())
    return float(allocation.note.split()[1])


# --- allocations -------------------------------------------------------------------------------


def test_prompts_that_vary_more_get_more_and_the_steady_stay_at_m():
    told = budget(ended(0, QUIET), ended(1, LOUD), ended(2, QUIET), ended(3, LOUD), mean=1.25)
    assert candidates(told, (0, 1, 2, 3)) == [8, 12, 8, 12]
    told.ended(ended(1, (10, 200, 400, 20, 30, 40)))
    first, second, *_, fourth = candidates(told, (0, 1, 2, 3))
    assert first == 8
    assert second > fourth


def test_while_nothing_is_known_all_get_the_same_half_way_between_the_bounds():
    found = budget().allocate(prompts(5, 6), view())
    assert found == [Allocation(candidates=12, max_tokens=512, note="sigma unknown")] * 2


def test_note_and_figures_tell_what_is_known_and_what_is_guessed():
    told = budget(ended(0, LOUD), ended(0, LOUD), mean=1.5)
    deviation = f"sigma {np.std(LOUD, ddof=1):.1f}"
    notes = [a.note for a in told.allocate(prompts(0, 7), view())]
    assert notes == [f"{deviation} (seen 2x)", f"{deviation} (guessed)"]
    assert told.metrics() == {"total": 24, "mean": 12.0, "known": 1, "unseen": 1}
    told.ended(ended(1, [*LOUD * 10]))  # 72 finished: a distribution
    told.allocate(prompts(0), view())
    metrics = told.metrics()
    assert metrics["generation_predicted_s"] > 0 > metrics["utility"]
    assert not metrics.keys() & {"what", "step", "prompts", "candidates"}  # the report's own


@pytest.mark.parametrize("ids,total", [((0,), 10), ((0, 1), 21), ((0, 1, 2), 31)])
def test_a_refill_of_few_prompts_gets_the_mean_of_each(ids: tuple[int, ...], total: int):
    assert sum(candidates(budget(ended(0, LOUD), mean=10.3 / 8), ids)) == total


def test_spare_is_what_every_group_has_at_least_and_most_what_it_has_at_most():
    told = budget(ended(0, (100,) * 6), ended(1, LOUD), spare=2, mean=1.5)
    assert candidates(told, (0, 1)) == [10, 14]
    wide = budget(ended(0, (100,) * 6), ended(1, LOUD), most=3, mean=1.9)
    assert candidates(wide, (0, 1)) == [8, 22]


def test_a_relaxed_size_makes_every_bound_smaller():
    told = budget(ended(0, (100,) * 6), ended(1, LOUD), spare=4, mean=1.75)
    assert candidates(told, (0, 1), view(size=3)) == [6, 6]  # 3 + 4 is beyond twice 3
    assert candidates(told, (0, 1), view(size=6)) == [10, 11]


def test_mth_finish_tells_a_far_tail_which_few_spares_cut_off_from_an_even_spread():
    even, tailed = ended(0, (900, 950, 1000, 1050, 1200)), ended(1, (10, 20, 30, 60, 280))
    by_variance = budget(even, tailed, mean=1.5)
    assert sigma(by_variance, 0) == pytest.approx(sigma(by_variance, 1), rel=0.03)
    assert candidates(by_variance, (0, 1)) == [12, 12]
    by_finish = budget(even, tailed, mean=1.5, by="mth_finish")
    assert candidates(by_finish, (0, 1)) == [13, 11]


def test_top_up_goes_to_the_fewest_finished_below_most():
    groups = [
        OpenView(id=i, size=2, sampled=n, finished=f, unended=n - f, enough=False)
        for i, n, f in ((1, 3, 1), (2, 4, 0), (3, 3, 0))
    ]
    assert list(budget(top_up="fewest").top_up(groups, 5)) == [(1, 1), (3, 1)]
    assert not list(budget().top_up(groups, 5))


# --- memory -----------------------------------------------------------------------------------


def test_variance_moves_by_the_weight_of_the_new_group():
    told = budget(ended(0, LOUD), ended(0, QUIET), memory=0.7)
    expected = 0.7 * np.var(QUIET, ddof=1) + 0.3 * np.var(LOUD, ddof=1)
    assert sigma(told, 0) == pytest.approx(math.sqrt(expected), abs=0.05)


def test_state_survives_a_checkpoint_and_gives_the_same_answers():
    told = budget(*(ended(i, [*LOUD, i + 1], cut=(300, 350), tag="ab"[i % 2]) for i in range(40)))
    told.allocate(prompts(1), view(max_tokens=400))
    again = budget()
    again.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(told.state())))
    assert again.state() == told.state()
    for each in (told, again):
        each.ended(ended(3, LOUD, cut=(399, 400)))
    assert again.allocate(prompts(*range(60)), view()) == told.allocate(prompts(*range(60)), view())
    assert again.metrics() == told.metrics()
    with pytest.raises(ValueError, match="version 2, not 1"):
        again.restore(told.state() | {"version": 2})


def test_unseen_prompts_are_guessed_by_tag_and_prompt_length():
    rng = np.random.default_rng(0)
    told = budget()
    for i in range(60):
        tokens, tag = int(rng.integers(10, 200)), "easy" if i % 2 else "hard"
        spread = tokens * (0.1 if tag == "easy" else 0.3)
        lengths = np.maximum(1, 300 + spread * rng.standard_normal(12)).astype(int).tolist()
        told.ended(ended(i, lengths, tokens=tokens, tag=tag))

    def guess(tokens: int, tag: str) -> float:
        [found] = told.allocate(prompts(999, tokens=tokens, tag=tag), view())
        assert found.note.endswith("(guessed)")
        return float(found.note.split()[1])

    assert guess(100, "easy") == pytest.approx(10, rel=0.3)
    assert guess(100, "hard") == pytest.approx(30, rel=0.3)
    assert guess(200, "hard") > 1.5 * guess(100, "hard")
    assert guess(100, "easy") < guess(100, "of another kind") < guess(100, "hard")
    assert guess(10**9, "hard") <= 90  # never beyond what has been seen


# --- what was cut short -----------------------------------------------------------------------


def test_members_cut_short_raise_the_estimate():
    finished = (80, 90, 100, 110, 120, 130, 140, 150)
    alone = sigma(budget(ended(0, finished)), 0)
    assert sigma(budget(ended(0, finished, cut=(150, 150, 150, 150))), 0) > 1.5 * alone
    # one that was cut at once says nothing: it completes to what the others show
    assert sigma(budget(ended(0, finished, cut=(1,))), 0) == pytest.approx(alone, rel=0.1)


def test_without_any_cut_short_it_is_the_plain_sample_variance():
    mean, variance = moments(LOUD, [False] * 6, 512) or (0.0, 0.0)
    assert (mean, variance) == pytest.approx((np.mean(LOUD), np.var(LOUD, ddof=1)))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6])
def test_law_is_found_again_though_the_longest_are_cut(share: float):
    lengths = np.random.default_rng(1).lognormal(6, 0.6, 4000)
    bound = np.quantile(lengths, 1 - share)
    cut = lengths > bound
    seen = np.minimum(lengths, bound).astype(int).tolist()
    law = fit_lognormal(seen, cut.tolist())
    assert (law.centre, law.spread) == pytest.approx((6, 0.6), abs=0.02)
    mean, variance = moments(seen, cut.tolist(), math.inf) or (0.0, 0.0)
    assert mean == pytest.approx(math.exp(6 + 0.18), rel=0.03)
    assert variance == pytest.approx(mean**2 * math.expm1(0.36), rel=0.1)


def test_of_small_groups_pruned_at_the_eighth_the_deviation_is_right_on_average():
    rng = np.random.default_rng(2)
    found: list[float] = []
    for _ in range(300):
        lengths = np.sort(rng.lognormal(6, 0.6, 12)).astype(int)
        seen = [*lengths[:8].tolist(), *[int(lengths[7])] * 4]
        _, variance = moments(seen, [False] * 8 + [True] * 4, 8192) or (0.0, 0.0)
        found.append(math.sqrt(variance))
    truth = math.exp(6 + 0.18) * math.sqrt(math.expm1(0.36))  # 317; of the 8 alone it is 119
    assert np.mean(found) == pytest.approx(truth, rel=0.15)


def test_no_response_is_taken_to_exceed_the_limit():
    lengths, cut = (100, 300, 512, 512), (False, False, True, True)
    assert moments(lengths, cut, 512) == pytest.approx((356, np.var(lengths, ddof=1)))
    mean, _ = moments((100, 300, 400, 400), cut, 512) or (0.0, 0.0)
    assert 300 < mean < 356


def test_a_group_that_says_nothing_changes_nothing():
    told = budget(ended(0, ()), ended(0, (50,)), ended(0, (), cut=(3, 4, 5)))
    assert told.allocate(prompts(0), view())[0].note == "sigma unknown"
    told.ended(ended(0, LOUD))
    before = sigma(told, 0)
    told.ended(ended(0, (), cut=(1, 1, 1, 1)))  # deferred before it had come anywhere
    assert sigma(told, 0) == pytest.approx(before, rel=0.05)


def test_law_of_moments_has_these_moments():
    law = lognormal(200.0, 90.0**2)
    assert math.exp(law.centre + law.spread**2 / 2) == pytest.approx(200)
    assert math.expm1(law.spread**2) == pytest.approx((90 / 200) ** 2)


# --- how many in all --------------------------------------------------------------------------


def lengths_of(finished: Sequence[int], cut: Sequence[int] = (), times: int = 64) -> Lengths:
    known = Lengths()
    known.add([*finished] * times, [False] * len(finished) * times)
    known.add([*cut] * times, [True] * len(cut) * times)
    return known


def test_distribution_is_the_product_limit_and_its_rest_lies_at_the_limit():
    found = lengths_of((10, 20, 30), cut=(15,)).distribution(50)
    assert found is not None
    # 1/4 at 10; the one cut at 15 shares its weight between 20 and 30: 3/8 each
    assert found.quantiles(8).tolist() == [10, 10, 20, 20, 20, 30, 30, 30]
    assert found.mean == pytest.approx((2 * 10 + 3 * 20 + 3 * 30) / 8)
    rest = lengths_of((10, 20), cut=(50, 50)).distribution(50)
    assert rest is not None
    assert rest.quantiles(4).tolist() == [10, 20, 50, 50]
    assert lengths_of((10,), times=63).distribution(50) is None


def test_predicted_time_is_the_papers_sum_over_sorted_lengths():
    found = lengths_of((10, 20, 60, 40)).distribution(512)
    assert found is not None
    utility = Utility(found, view(need=2, engines=2), 0.5)
    latency = CURVE.seconds
    by_hand = 10 * latency(4) + 10 * latency(3) + 20 * latency(2) + 20 * latency(1)
    assert utility.seconds(4) == pytest.approx(by_hand)
    # 8 slots for 16 requests: the other 8 have waited for 8 x 32.5 tokens of full slots
    few = Utility(found, view(need=2, engines=2, slots=16), 0.5)
    assert few.seconds(16) == pytest.approx(few.seconds(8) + 32.5 * latency(8))


def test_mean_is_the_one_of_the_largest_utility():
    found = lengths_of(LOUD).distribution(512)
    assert found is not None
    relative = found.deviation / found.mean
    for weight in (0.0, 0.2, 0.5, 2.0):
        utility = Utility(found, view(), weight)
        best = utility.best(8, 16)
        grid = [8 + k / 8 for k in range(65)]
        worth = [
            relative * math.log(m / 8) - weight * utility.seconds(m) / utility.seconds(8)
            for m in grid
        ]
        assert best.utility == pytest.approx(max(worth))
        assert best.mean == grid[int(np.argmax(worth))]


def test_more_weight_on_time_gives_fewer_candidates_and_none_gives_the_most():
    drawn = np.random.default_rng(0).lognormal(4, 0.7, (64, 12)).astype(int).tolist()

    def total(time_weight: float) -> int:
        told = budget(*(ended(i, row) for i, row in enumerate(drawn)), time_weight=time_weight)
        return sum(candidates(told, range(4), view(need=16)))

    most, more, less, least = (total(weight) for weight in (0.0, 0.7, 1.0, 5.0))
    assert 64 == most > more > less > least == 32


# --- in the coordinator ------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["variance", "mth_finish"])
def test_a_faulty_run_ends_balanced_and_its_checkpoints_hold_what_was_learnt(by: str):
    learning = budget(by=by, top_up="fewest")
    plugins = msgspec.structs.replace(plugins_of(), budget=learning)
    world = World(2, settings_of(steps=8), plugins)
    world.start()
    world.run()
    assert world.over is not None and world.over.error == ""
    assert learning.metrics()["generation_predicted_s"] > 0
    # each training group told once; deferred ones are told too, and are not among the trained
    assert sum(row[-1] for row in learning.state()["prompts"]) >= len(world.trained) >= 24
    again = budget()
    again.restore(world.cuts[-1].plugins["budget"])
    assert len(again.state()["prompts"]) > 0


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,complaint",
    [
        ({"memory": 0.0}, "memory: found 0.0, expected above 0 and at most 1"),
        ({"memory": 1.5}, "memory: found 1.5, expected above 0 and at most 1"),
        ({"time_weight": -1.0}, "time_weight: found -1.0, expected at least 0"),
        ({"time_weight": math.nan}, "time_weight: found nan, expected at least 0"),
        ({"spare": -1}, "spare: found -1, expected at least 0"),
        ({"spare": 5, "most": 1.5}, "spare is 5, but most allows 12 for 8: at most 4"),
        ({"mean": 2.5}, "mean is 2.5, expected 0, or from 1 to most (2)"),
        ({"mean": 1.1, "spare": 2}, "mean is 1.1, expected 0, or from 1.25 to most (2)"),
        ({"most": 0.5}, "most: found 0.5, expected from 1 to 64"),
        ({}, None),
        ({"mean": 1.25, "spare": 2, "by": "mth_finish", "time_weight": 0.0}, None),
    ],
)
def test_settings_that_cannot_be_are_told_with_their_rule(
    options: dict[str, Any], complaint: str | None
):
    found = option_problems(LengthVarianceOptions, **options)
    assert found == ([complaint] if complaint else [])


def test_it_is_found_by_name_with_its_options():
    assert registry.find_plugin("budget", "length_variance") is LengthVariance
    assert registry.options_type(LengthVariance) is LengthVarianceOptions


def test_a_response_cut_just_below_the_limit_is_known_to_within_a_token():
    """It ends between 39 and 40: a variance of 1/4 at most, as of any value in a unit."""
    mean, variance = moments([10, 20, 39], [False, False, True], 40) or (0.0, 0.0)
    filled = 3 * mean - 30
    assert 39 <= filled <= 40
    doubt = variance - np.var([10, 20, filled], ddof=1)
    assert 0 <= doubt <= 0.25 / 3 + 1e-9
