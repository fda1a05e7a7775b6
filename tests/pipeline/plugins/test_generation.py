"""The seconds that a step is predicted to take, against a step that is played out."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.hardware.latency_model import LatencyModel
from pipeline.plugins.budgets._censored import Lognormal
from pipeline.plugins.budgets._generation import generation_seconds
from pipeline.plugins.interfaces import Finish, Selector
from pipeline.plugins.selectors.all import All
from pipeline.plugins.selectors.concise_confident import ConciseConfident, ConciseConfidentOptions
from pipeline.plugins.selectors.dual_end import DualEnd, DualEndOptions
from pipeline.plugins.selectors.first_m import FirstM
from pipeline.plugins.selectors.shortest import Shortest
from pipeline.plugins.testing import group_of
from pipeline.plugins.views import BudgetView

FLAT = LatencyModel(((1, 0.01), (256, 0.01)))
STEEP = LatencyModel(((1, 0.01), (256, 0.64)))


def view(latency: LatencyModel, *, engines: int = 1, slots: int = 256) -> BudgetView:
    return BudgetView(
        step=1, size=8, max_tokens=4096, need=4, engines=engines, slots=slots, latency=latency
    )


def played(
    laws: Sequence[Lognormal], candidates: int, waits: int, latency: LatencyModel, limit: int = 4096
) -> float:
    """Mean seconds of steps in which every token of every sequence is counted out."""
    rng = random.Random(0)
    found: list[float] = []
    for _ in range(100):
        drawn = [
            [rng.lognormvariate(law.centre, law.spread) for _ in range(candidates)] for law in laws
        ]
        groups = [sorted(min(limit, length) for length in group) for group in drawn]
        seconds, at = 0.0, 0.0
        for end in sorted({length for group in groups for length in group[:waits]}):
            running = sum(
                sum(length > at for length in group) for group in groups if group[waits - 1] > at
            )
            seconds += (end - at) * latency.seconds(running)
            at = end
        found.append(seconds)
    return sum(found) / len(found)


@pytest.mark.parametrize("latency", [FLAT, STEEP], ids=["flat", "steep"])
@pytest.mark.parametrize("candidates, waits", [(8, 8), (12, 12), (16, 8), (12, 9)])
def test_the_prediction_is_the_mean_of_steps_that_are_played(
    candidates: int, waits: int, latency: LatencyModel
) -> None:
    laws = [Lognormal(math.log(tokens), 0.8) for tokens in (100, 200, 300, 500)]
    predicted = generation_seconds(laws, [candidates] * 4, [waits] * 4, view(latency))
    assert predicted == pytest.approx(played(laws, candidates, waits, latency), rel=0.08)


def test_with_no_spread_it_is_the_papers_sum_by_hand() -> None:
    """sum_m (l[m] - l[m-1]) PTL(M' - m + 1): two responses of 100 tokens and two of 200."""
    laws = [Lognormal(math.log(100), 0.002), Lognormal(math.log(200), 0.002)]
    by_hand = 100 * STEEP.seconds(4) + 100 * STEEP.seconds(2)
    found = generation_seconds(laws, [2, 2], [2, 2], view(STEEP))
    assert found == pytest.approx(by_hand, rel=0.07)


def test_engines_share_the_requests_and_slots_that_are_few_make_them_wait() -> None:
    laws = [Lognormal(math.log(200), 0.5)] * 8
    ask = (laws, [8] * 8, [8] * 8)
    one, four = (generation_seconds(*ask, view(STEEP, engines=n, slots=256 * n)) for n in (1, 4))
    assert one > 2.5 * four
    whole = generation_seconds(*ask, view(FLAT, slots=64))
    half = generation_seconds(*ask, view(FLAT, slots=32))
    mean = 200 * math.exp(0.5**2 / 2)
    # 64 requests on 32 slots: the later half has waited for 32 x mean tokens of 32 full slots
    assert half == pytest.approx(whole + mean * 0.01, rel=0.03)


def test_pruned_groups_take_less_than_those_that_wait() -> None:
    laws = [Lognormal(math.log(200), 0.9)] * 8
    waiting = generation_seconds(laws, [16] * 8, [16] * 8, view(FLAT))
    pruned = generation_seconds(laws, [16] * 8, [8] * 8, view(FLAT))
    assert pruned < waiting / 2


WAITING: list[Selector] = [
    All(),
    Shortest(),
    FirstM(),
    DualEnd(DualEndOptions(long_wait="group")),
    DualEnd(DualEndOptions(long_wait="group", prune_at=2.0)),
    DualEnd(DualEndOptions(long_wait="step")),
    ConciseConfident(),
    ConciseConfident(ConciseConfidentOptions(depth="none", slack=2)),
]


@pytest.mark.parametrize("candidates", [4, 6, 8])
@pytest.mark.parametrize("selector", WAITING, ids=lambda s: f"{type(s).__name__}")
def test_a_selector_says_how_many_it_really_waits_for(selector: Selector, candidates: int) -> None:
    """Members end one by one: the group could close at the one that `waits_for` names."""
    rule = getattr(selector, "waits_for", None)
    named = rule(candidates, 4) if rule else candidates
    rng = np.random.default_rng(candidates)
    tokens = rng.integers(10, 99, candidates).tolist()
    for ended in range(1, candidates + 1):
        group = group_of(
            size=4,
            finished={i: tokens[i] for i in range(ended)},
            running=dict.fromkeys(range(ended, candidates), 50),
            budget=candidates,
        )
        if list(selector.decide(group, Finish(ended - 1))):
            break
    else:
        raise AssertionError("it never closes")
    slack = isinstance(selector, ConciseConfident)  # a gate may let it close before its slack
    assert ended == named or (slack and ended <= named)
