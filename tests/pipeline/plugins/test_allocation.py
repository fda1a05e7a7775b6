"""Candidates spread over prompts: exact, within bounds, and quick for a large data set."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plugins.budgets._allocation import (
    BudgetError,
    Floats,
    allocate_by_finish,
    allocate_candidates,
    mth_finish,
)

DEVIATIONS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 7.3, 120.0]), min_size=1, max_size=5)


def objective(deviations: npt.ArrayLike, counts: npt.ArrayLike) -> float:
    return float(np.divide(deviations, counts).sum())


def one_at_a_time(deviations: Sequence[float], total: int, low: int, high: int) -> list[int]:
    """The heap of the paper, word for word."""
    counts = [low] * len(deviations)
    heap = [(-s / (low * (low + 1)), i) for i, s in enumerate(deviations) if low < high]
    heapq.heapify(heap)
    for _ in range(total - low * len(counts)):
        _, i = heapq.heappop(heap)
        counts[i] += 1
        if counts[i] < high:
            heapq.heappush(heap, (-deviations[i] / (counts[i] * (counts[i] + 1)), i))
    return counts


@given(DEVIATIONS, st.integers(1, 4), st.integers(0, 4), st.floats(0, 1))
def test_greedy_allocation_is_the_best_of_all_that_there_are(
    deviations: list[float], low: int, room: int, share: float
):
    prompts, high = len(deviations), low + room
    total = prompts * low + round(share * prompts * room)
    found = allocate_candidates(deviations, total=total, low=low, high=high).tolist()
    assert found == one_at_a_time(deviations, total, low, high)
    every = itertools.product(range(low, high + 1), repeat=prompts)
    best = min(objective(deviations, counts) for counts in every if sum(counts) == total)
    assert objective(deviations, found) == pytest.approx(best, rel=1e-12, abs=1e-12)


@given(
    st.lists(st.floats(0, 1e4), min_size=1, max_size=60),
    st.integers(1, 9),
    st.integers(0, 12),
    st.floats(0, 1),
)
def test_allocation_equals_the_heap_of_single_candidates(
    deviations: list[float], low: int, room: int, share: float
):
    total = len(deviations) * low + round(share * len(deviations) * room)
    found = allocate_candidates(deviations, total=total, low=low, high=low + room).tolist()
    assert found == one_at_a_time(deviations, total, low, low + room)


def test_equal_deviations_get_equal_shares_and_the_rest_goes_to_the_earliest():
    assert allocate_candidates([5.0] * 4, total=38, low=8, high=16).tolist() == [10, 10, 9, 9]
    assert allocate_candidates([30.0, 10.0, 10.0], total=12, low=2, high=8).tolist() == [6, 3, 3]


def relaxed(deviations: Floats, total: int, low: int, high: int) -> float:
    """The least objective of fractional candidates: water-filling, m_i = sqrt(s_i / level)."""

    def counts(level: float) -> Floats:
        return np.clip(np.sqrt(deviations / level), low, high)

    below, above = 1e-12, float(deviations.max()) / low**2
    for _ in range(200):
        level = math.sqrt(below * above)
        below, above = (level, above) if counts(level).sum() > total else (below, level)
    return objective(deviations, counts(below))


@pytest.mark.parametrize("prompts,low,high,mean", [(100_000, 8, 16, 12.0), (3000, 4, 64, 9.3)])
def test_allocation_of_a_large_batch_reaches_the_bound_of_the_convex_relaxation(
    prompts: int, low: int, high: int, mean: float
):
    deviations = np.random.default_rng(prompts).lognormal(4, 0.8, prompts)
    total = round(mean * prompts)
    found = allocate_candidates(deviations, total=total, low=low, high=high)
    assert found.sum() == total
    assert low <= found.min() <= found.max() <= high
    bound = relaxed(deviations, total, low, high)
    assert bound * (1 - 1e-9) <= objective(deviations, found) <= bound * 1.005
    assert objective(deviations, found) < objective(deviations, np.full(prompts, mean)) * 0.98


# --- by the expected M-th finish --------------------------------------------------------------


@pytest.mark.parametrize("column", [0, 10, 30])
def test_expected_finish_of_two_lognormals_is_the_closed_form(column: int):
    spread = 0.05 * column
    whole = 2 * math.exp(spread**2 / 2)
    first, last = mth_finish(1, 2)[1, column], mth_finish(2, 2)[0, column]
    assert first == pytest.approx(whole * math.erfc(spread / 2) / 2, rel=1e-9)
    assert last == pytest.approx(whole * math.erfc(-spread / 2) / 2, rel=1e-9)


def test_expected_finish_of_eight_of_twelve_is_that_of_drawn_responses():
    drawn = np.sort(np.random.default_rng(3).lognormal(0, 0.6, (100_000, 12)), axis=1)[:, 7]
    assert mth_finish(8, 12)[4, 12] == pytest.approx(drawn.mean(), rel=3e-3)


@pytest.mark.parametrize("size", [2, 3, 8, 16, 64])
def test_each_further_candidate_gains_less_so_that_greedy_is_exact(size: int):
    table = mth_finish(size, 4 * size)
    gains = -np.diff(table, axis=0)
    assert (gains[:, 1:] > 0).all()
    assert (np.diff(gains, axis=0) <= 1e-12 * table[:-2]).all()


@given(
    st.lists(
        st.tuples(st.sampled_from([10.0, 60.0]), st.sampled_from([0.0, 3.0, 25.0, 90.0])),
        min_size=1,
        max_size=4,
    ),
    st.floats(0, 1),
)
def test_allocation_by_finish_is_the_best_of_all_that_there_are(
    prompts: list[tuple[float, float]], share: float
):
    size, low, high = 3, 4, 7
    means, deviations = [m for m, _ in prompts], [s for _, s in prompts]
    total = len(prompts) * low + round(share * len(prompts) * (high - low))
    given_ = {"size": size, "low": low, "high": high}
    found = allocate_by_finish(means, deviations, total=total, **given_)
    assert found.sum() == total
    # what each count costs a prompt, read off the allocator's own table at the exact spread
    spreads = np.sqrt(np.log1p(np.square(np.divide(deviations, means))))
    columns, table = np.linspace(0, 3, 61), mth_finish(size, high)
    finish = [
        [mean * math.exp(-(spread**2) / 2) * np.interp(spread, columns, row) for row in table]
        for mean, spread in zip(means, spreads, strict=True)
    ]

    def waited(counts: Sequence[int]) -> float:
        return sum(row[m - size] for row, m in zip(finish, counts, strict=True))

    every = itertools.product(range(low, high + 1), repeat=len(prompts))
    best = min(waited(counts) for counts in every if sum(counts) == total)
    assert waited(found.tolist()) == pytest.approx(best, rel=1e-9)


def test_allocation_by_finish_prefers_the_long_of_two_that_vary_alike():
    found = allocate_by_finish([100, 400], [60, 240], size=8, total=24, low=8, high=16)
    assert found[1] > found[0]
    assert allocate_by_finish([100, 400], [60, 0], size=8, total=24, low=8, high=16).tolist() == [
        16,
        8,
    ]


# --- what cannot be spread ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "deviations,total,complaint",
    [
        ([1.0, 1.0], 15, "15 candidates for 2 prompts with 8 to 16 each"),
        ([1.0, 1.0], 33, "33 candidates"),
        ([1.0, math.nan], 20, "deviation of prompt 1 is nan"),
        ([-1.0, 1.0], 20, "deviation of prompt 0 is -1.0"),
        ([1.0, math.inf], 20, "deviation of prompt 1 is inf"),
    ],
)
def test_what_does_not_fit_is_refused(deviations: list[float], total: int, complaint: str):
    with pytest.raises(BudgetError, match=complaint):
        allocate_candidates(deviations, total=total, low=8, high=16)
    with pytest.raises(BudgetError, match=complaint):
        allocate_by_finish([50.0] * 2, deviations, size=8, total=total, low=8, high=16)


def test_finish_needs_a_length_and_as_many_candidates_as_it_waits_for():
    with pytest.raises(BudgetError, match="mean is 0"):
        allocate_by_finish([0.0], [1.0], size=2, total=2, low=2, high=4)
    with pytest.raises(BudgetError, match="waits for 3"):
        allocate_by_finish([9.0], [1.0], size=3, total=2, low=2, high=4)
