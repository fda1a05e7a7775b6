"""Decides how many candidates each prompt gets, from what is known of its lengths.

Both rules give one candidate at a time to the largest marginal gain, which is
optimal because the gains of a prompt never grow. The outcome of that heap is
found without it: the gain of the last candidate given is a level, every gain
above it is taken, and those equal to it go to the earliest prompts. Pure; numpy
only. Letters on names: P prompts, C candidates beyond `low`, S spreads, Z deviates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_SPREADS_S: Floats = np.linspace(0.0, 3.0, 61)  # of log length; beyond: as the last
_DEVIATES_Z: Floats = np.linspace(-8.0, 8.0, 641)  # beyond 8 there is 6e-16 of a normal


class BudgetError(ValueError):
    """Candidates cannot be spread: the total does not fit its bounds, or a figure is no number."""


def allocate_candidates(
    deviations_P: Sequence[float] | Floats, *, total: int, low: int, high: int
) -> Counts:
    """Spread `total` candidates over prompts, more where lengths vary more.

    Minimises sum_i deviations[i] / m_i exactly; ties go to the earlier prompt. The
    paper's norm() divides all deviations by their mean, which moves no candidate.
    Memory: two arrays of P x (high - low) floats.

    Args:
        deviations_P: standard deviation of response length, tokens, >= 0.
        total: candidates of the whole batch, P * low <= total <= P * high.
        low, high: bounds per prompt, candidates, 1 <= low <= high.

    Returns: shape (P,), candidates per prompt; sums to `total`.
    Raises: BudgetError if `total` does not fit the bounds, or a deviation is NaN,
        infinite or negative.
    Source: adaptive budget, arXiv 2605.30859.

    >>> allocate_candidates([30.0, 10.0, 10.0], total=12, low=2, high=8).tolist()
    [6, 3, 3]
    """
    deviations_P = _checked("deviation", deviations_P)
    _check_total(len(deviations_P), total, low, high)
    now_C = np.arange(low, high, dtype=np.float64)
    gains_PC = deviations_P[:, None] / (now_C * (now_C + 1))
    return low + _largest(gains_PC, total - low * len(deviations_P))


def allocate_by_finish(
    means_P: Sequence[float] | Floats,
    deviations_P: Sequence[float] | Floats,
    *,
    size: int,
    total: int,
    low: int,
    high: int,
) -> Counts:
    """Spread `total` candidates over prompts so that groups are complete soonest on average.

    Minimises sum_i E[M-th shortest of m_i responses], lengths lognormal with the mean and
    deviation of prompt i; ties go to the earlier prompt.

    Args:
        means_P, deviations_P: of response length, tokens; means above 0.
        size: M, members that a group waits for.
        total, low, high: as in `allocate`, with low >= size.

    Returns: shape (P,), candidates per prompt; sums to `total`.
    Raises: BudgetError as `allocate` does, or if `low` is below `size`.
    """
    means_P = _checked("mean", means_P)
    deviations_P = _checked("deviation", deviations_P)
    if low < size:
        raise BudgetError(f"low is {low}, but a group waits for {size}")
    if not (means_P > 0).all():
        raise BudgetError(f"a mean is {means_P.min()}, expected above 0")
    _check_total(len(means_P), total, low, high)
    table_CS = mth_finish(size, high)[low - size :]
    ratio_P = 1 + np.square(deviations_P / means_P)
    at_P = np.minimum(np.sqrt(np.log(ratio_P)), _SPREADS_S[-1]) / _SPREADS_S[1]
    left_P = np.minimum(at_P.astype(np.int64), len(_SPREADS_S) - 2)
    share_P = at_P - left_P
    finish_CP = table_CS[:, left_P] * (1 - share_P) + table_CS[:, left_P + 1] * share_P
    finish_CP *= means_P / np.sqrt(ratio_P)  # by the median: the table's is 1
    gains_PC = np.ascontiguousarray(-np.diff(finish_CP, axis=0).T)
    return low + _largest(gains_PC, total - low * len(means_P))


@lru_cache(maxsize=16)
def mth_finish(size: int, high: int) -> Floats:
    """E[exp(s Z)], Z the `size`-th smallest of m standard normals, m = size..high.

    The expected M-th finish of m lognormal responses with median 1. The density of an order
    statistic (David and Nagaraja, Order Statistics, 2.1.6), summed over 641 deviates: exact to
    1e-9. For these lengths each further candidate gains less than the one before (tested).

    Returns: shape (high - size + 1, S), by the spread s of log length: 0 to 3 by 0.05.
    """
    below_Z = np.array([math.erfc(-z / math.sqrt(2)) / 2 for z in _DEVIATES_Z.tolist()])
    above_Z = below_Z[::-1]
    step = _DEVIATES_Z[1] - _DEVIATES_Z[0]
    normal_Z = np.exp(-np.square(_DEVIATES_Z) / 2) * step / math.sqrt(2 * math.pi)
    grown_ZS = np.exp(np.outer(_DEVIATES_Z, _SPREADS_S))
    rows: list[Floats] = []
    for m in range(size, high + 1):
        ways = math.lgamma(m + 1) - math.lgamma(size) - math.lgamma(m - size + 1)
        density_Z = np.exp(ways + (size - 1) * np.log(below_Z) + (m - size) * np.log(above_Z))
        rows.append((density_Z * normal_Z) @ grown_ZS)
    table = np.array(rows)
    table[:, 0] = 1.0  # no spread: nothing to gain, not even a rounding error
    table.setflags(write=False)
    return table


def _largest(gains_PC: Floats, count: int) -> Counts:
    """Counts the `count` largest gains by prompt; ties go to the earlier prompt."""
    if count == 0:
        return np.zeros(len(gains_PC), dtype=np.int64)
    level = np.partition(gains_PC, gains_PC.size - count, axis=None)[gains_PC.size - count]
    above_P = np.count_nonzero(gains_PC > level, axis=1)
    equal_P = np.count_nonzero(gains_PC == level, axis=1)
    left_P = count - above_P.sum() - (np.cumsum(equal_P) - equal_P)  # when a prompt's turn comes
    return above_P + np.clip(left_P, 0, equal_P)


def _checked(name: str, given_P: Sequence[float] | Floats) -> Floats:
    values_P = np.asarray(given_P, dtype=np.float64)
    bad_P = ~(np.isfinite(values_P) & (values_P >= 0))
    if bad_P.any():
        first = int(bad_P.argmax())
        raise BudgetError(f"{name} of prompt {first} is {values_P[first]}, expected 0 or more")
    return values_P


def _check_total(prompts: int, total: int, low: int, high: int) -> None:
    if not 1 <= low <= high or not prompts * low <= total <= prompts * high:
        raise BudgetError(f"{total} candidates for {prompts} prompts with {low} to {high} each")
