"""The verdict of a soak: what grows is found, what only jumps is not."""

from __future__ import annotations

import random

import pytest

from scripts.bench.flatness import (
    ALLOWED,
    Series,
    flatness_table,
    flatness_verdict,
    series_row,
    slope,
)


def series_of(values: list[float], unit: str = "MiB") -> Series:
    return Series(of="stage", unit=unit, times_s=[2.0 * i for i in range(len(values))],
                  values=values)  # fmt: skip


def test_a_leak_is_found_in_noise() -> None:
    draw = random.Random(0)
    leaking = series_of([300 + 0.5 * i + draw.uniform(-20, 20) for i in range(200)])
    found = series_row(leaking, 400)
    assert found is not None
    assert not found.flat
    assert found.slope_per_hour == pytest.approx(0.25 * 3600, rel=0.1)
    assert found.first < found.last
    assert flatness_verdict([found], {"engine killed": 3}).startswith(
        "NOT flat under 3 faults: MiB of"
    )
    assert flatness_table([found])[-1].endswith("| NO |")


def test_a_process_that_starts_again_and_again_is_flat() -> None:
    saw = series_of([100.0 + 3 * (i % 20) for i in range(200)])
    found = series_row(saw, 400)
    assert found is not None
    assert found.flat
    assert flatness_verdict([found], {}).startswith("flat under 0 faults")


def test_growth_in_the_warm_up_is_none() -> None:
    found = series_row(series_of([float(min(i, 40) * 10) for i in range(200)]), 400)
    assert found is not None
    assert found.flat
    assert (found.first, found.last) == (245.0, 400.0)


def test_a_descriptor_every_minute_is_a_leak_within_twenty() -> None:
    values = [30.0 + int(i * 2 / 60) for i in range(600)]
    found = series_row(series_of(values, "descriptors"), 1200)
    assert found is not None
    assert found.growth > ALLOWED["descriptors"][0]
    assert not found.flat


def test_of_too_few_samples_nothing_is_said() -> None:
    assert series_row(series_of([1.0] * 8), 16) is None
    assert flatness_verdict([], {}) == "too short to say anything"


def test_a_slope_is_the_middle_of_all_pairs() -> None:
    assert slope([0, 1, 2, 3, 4], [5, 7, 9, 11, 100]) == 2.0
