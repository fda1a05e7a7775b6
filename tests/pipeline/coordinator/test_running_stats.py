"""Running figures: windows, quantiles, and the way through a checkpoint."""

from __future__ import annotations

import random

from pipeline.coordinator.running_stats import WINDOW, RunningStatistics, Window


def test_quantiles_are_none_before_enough_values() -> None:
    statistics = RunningStatistics()
    assert statistics.pass_rate() is None
    for number in range(63):
        statistics.finished(-float(number), number)
    assert statistics.confidence_quantile(0.5) is None
    assert statistics.length_quantile(0.5, at_least=63) == 31
    statistics.finished(-63.0, 63)
    assert statistics.confidence_quantile(0.0) == -63.0


def test_quantile_is_of_the_last_512_values_whatever_their_order() -> None:
    rng = random.Random(0)
    window, everything = Window([]), []
    for _ in range(3 * WINDOW):
        value = float(rng.randint(0, 50))  # many ties
        window.add(value)
        everything.append(value)
        newest = sorted(everything[-WINDOW:])
        for q in (0.0, 0.2, 1.0):
            expected = newest[min(len(newest) - 1, int(q * len(newest)))]
            assert window.quantile(q, 1) == expected
    assert len(window.values) == WINDOW


def test_quantile_of_nothing_is_none_even_if_nothing_is_asked_for() -> None:
    assert Window([]).quantile(0.5, at_least=0) is None


def test_state_restores_to_the_same_answers() -> None:
    statistics = RunningStatistics()
    for number in range(600):
        statistics.finished(-number / 7, number)
        statistics.rewarded(number % 2)
    again = RunningStatistics(statistics.state())
    assert again.state() == statistics.state()
    for other in (statistics, again):
        other.finished(-1.0, 1)
        other.rewarded(1.0)
    assert again.confidence_quantile(0.2) == statistics.confidence_quantile(0.2)
    assert again.length_quantile(0.9) == statistics.length_quantile(0.9)
    assert again.pass_rate() == statistics.pass_rate()
