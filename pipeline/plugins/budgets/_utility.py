"""Lengths of late and what a token costs -> how many candidates a prompt gets on average.

U(M̄) = E(M̄) - lambda T(M̄) / T(M), with E(M̄) = sigma_rel ln(M̄ / M), sigma_rel the
deviation over the mean of all lengths, and T the time of generating a step with
every candidate waited for: sum_m (l[m] - l[m-1]) PTL(running) over sorted lengths.
Source: arXiv 2605.30859; the form of E and the division by T(M), which frees lambda
of a unit, are ours. Pure.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.plugins.views import BudgetView

_WINDOW = 1024  # candidates
_AT_LEAST = 64  # finished, before their distribution is believed
_GRID = 65  # values of M̄ tried, both ends included

Floats = npt.NDArray[np.float64]


class Distribution(msgspec.Struct, frozen=True):
    """Response lengths of all prompts together."""

    lengths: Floats  # tokens, ascending
    share: Floats  # responses of at most that length; the last is 1

    def quantiles(self, count: int) -> Floats:
        """Expected sorted lengths of so many responses: quantiles at (k - 1/2) / count."""
        at = (np.arange(count) + 0.5) / count
        return self.lengths[np.searchsorted(self.share, at)]

    @property
    def mean(self) -> float:
        return float(self.lengths @ np.diff(self.share, prepend=0.0))

    @property
    def deviation(self) -> float:
        return math.sqrt(float((self.lengths - self.mean) ** 2 @ np.diff(self.share, prepend=0.0)))


class Choice(msgspec.Struct, frozen=True):
    """A mean number of candidates, and what it is expected to give."""

    mean: float  # M̄
    utility: float


class Lengths:
    """The last candidates' lengths, those cut short as lower bounds."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int, bool]] = deque(maxlen=_WINDOW)

    def add(self, lengths: Sequence[int], censored: Sequence[bool]) -> None:
        self._recent.extend(zip(lengths, censored, strict=True))

    def distribution(self, limit: int) -> Distribution | None:
        """Product-limit estimate; what is left beyond the last finished one is at `limit`.

        Source: Kaplan and Meier 1958. None before 64 have finished.
        """
        ordered = sorted(self._recent)  # at equal length the finished ones first
        finished = np.array([not cut for _, cut in ordered], dtype=bool)
        if finished.sum() < _AT_LEAST:
            return None
        at_risk = np.arange(len(ordered), 0, -1)
        longer = np.cumprod(np.where(finished, 1 - 1 / at_risk, 1.0))[finished]
        lengths = np.array([length for length, _ in ordered], dtype=np.float64)[finished]
        return Distribution(
            np.append(lengths, max(float(limit), lengths[-1])), np.append(1 - longer, 1.0)
        )

    def state(self) -> list[list[Any]]:
        return [[length, cut] for length, cut in self._recent]

    def restore(self, rows: Sequence[Sequence[Any]]) -> None:
        self._recent.clear()
        self._recent.extend((int(length), bool(cut)) for length, cut in rows)


class Utility:
    """U(M̄) of one step.

    Args:
        lengths: of responses.
        view: the step and the engines.
        time_weight: lambda.
    """

    def __init__(self, lengths: Distribution, view: BudgetView, time_weight: float) -> None:
        self._lengths, self._size, self._weight = lengths, view.size, time_weight
        self._groups = view.need / view.engines  # that one engine generates
        self._slots = max(1, view.slots // view.engines)
        costs = [view.latency.seconds(running) for running in range(1, self._slots + 1)]
        self._cost: Floats = np.array(costs)
        self._relative = lengths.deviation / max(lengths.mean, 1.0)
        self._least_s = self.seconds(view.size)

    def seconds(self, mean: float) -> float:
        """T: seconds in which one engine generates its part of a step.

        What fits in its slots starts together and runs until the last has ended; what does not
        waits for slots, which are all busy meanwhile. The second term is ours (the paper has a
        slot for every request): without it candidates beyond the slots would cost nothing.
        """
        requests = self._groups * mean
        running = max(1, min(self._slots, math.ceil(requests)))  # on the busiest engine
        steps = np.diff(self._lengths.quantiles(running), prepend=0.0)
        queued = max(0.0, requests - self._slots) / self._slots * self._lengths.mean
        return float(steps @ self._cost[running - 1 :: -1] + queued * self._cost[-1])

    def at(self, mean: float) -> Choice:
        """Returns what `mean` candidates a prompt are expected to give."""
        gain = self._relative * math.log(mean / self._size)
        return Choice(mean, gain - self._weight * self.seconds(mean) / self._least_s)

    def best(self, low: int, high: int) -> Choice:
        """The mean from `low` to `high` of the largest utility; of equal ones the smallest."""
        tried = [self.at(float(mean)) for mean in np.linspace(low, high, _GRID)]
        return max(tried, key=lambda choice: choice.utility)
