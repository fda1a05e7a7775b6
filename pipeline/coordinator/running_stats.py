"""Running figures across groups, in event order, so that a replay is exact."""

from __future__ import annotations

import bisect
from collections import deque

import msgspec

WINDOW = 512


class Window:
    """The last `WINDOW` values, and their quantiles in O(log WINDOW)."""

    def __init__(self, values: list[float]) -> None:
        self.values = deque(values)
        self._sorted = sorted(values)

    def add(self, value: float) -> None:
        if len(self.values) == WINDOW:
            oldest = self.values.popleft()
            del self._sorted[bisect.bisect_left(self._sorted, oldest)]
        self.values.append(value)
        bisect.insort(self._sorted, value)

    def quantile(self, q: float, at_least: int) -> float | None:
        """Lower empirical q-quantile, or None before `at_least` values."""
        if len(self._sorted) < max(1, at_least):
            return None
        return self._sorted[min(len(self._sorted) - 1, int(q * len(self._sorted)))]

    def above(self, value: float) -> list[float]:
        """Values above this one, ascending."""
        return self._sorted[bisect.bisect_right(self._sorted, value) :]

    def mean(self) -> float | None:
        return sum(self.values) / len(self.values) if self.values else None


class StatisticsState(msgspec.Struct, frozen=True):
    confidence: list[float] = []
    length: list[float] = []
    reward: list[float] = []


class RunningStatistics:
    """Implements `pipeline.plugins.views.Statistics`."""

    def __init__(self, state: StatisticsState | None = None) -> None:
        state = state or StatisticsState()
        self._confidence = Window(state.confidence)
        self._length = Window(state.length)
        self._reward = Window(state.reward)

    def finished(self, confidence: float, tokens: int) -> None:
        self._confidence.add(confidence)
        self._length.add(float(tokens))

    def rewarded(self, reward: float) -> None:
        self._reward.add(reward)

    def confidence_quantile(self, q: float, at_least: int = 64) -> float | None:
        return self._confidence.quantile(q, at_least)

    def length_quantile(self, q: float, at_least: int = 64) -> float | None:
        return self._length.quantile(q, at_least)

    def pass_rate(self) -> float | None:
        return self._reward.mean()

    def state(self) -> StatisticsState:
        return StatisticsState(
            list(self._confidence.values), list(self._length.values), list(self._reward.values)
        )
