"""Time to an accuracy, and what of it is the chance of which samples were evaluated."""

from __future__ import annotations

from typing import Any

import pytest

from launch.bench.compare.tables import columns, comparison_markdown
from launch.bench.compare.target_time import likely_seconds, seconds_to
from launch.run_files.records import EvalLine
from tests.launch.bench.test_compare import metrics_of


def curve(*accuracies: float, samples: int = 256) -> list[EvalLine]:
    """An evaluation every ten seconds."""
    return [
        EvalLine(
            step=at,
            accuracy=accuracy,
            tokens_mean=1.0,
            tokens_p95=1.0,
            samples=samples,
            train_s=10.0 * at,
        )
        for at, accuracy in enumerate(accuracies)
    ]


def test_a_target_that_is_passed_by_far_is_reached_when_it_seems_to_be():
    clear = curve(0.3, 0.5, 0.9, 0.95)
    assert seconds_to(clear, 0.75) == 20.0
    assert likely_seconds(clear, 0.75) == (20.0, 20.0)


def test_one_that_is_just_met_may_have_been_met_an_evaluation_later_or_sooner():
    near = curve(0.3, 0.74, 0.76, 0.9)
    assert seconds_to(near, 0.75) == 20.0
    assert likely_seconds(near, 0.75) == (10.0, 30.0)
    assert likely_seconds(curve(0.3, 0.74, 0.76, 0.9, samples=10**6), 0.75) == (20.0, 20.0)


def test_one_that_is_never_met_may_have_been():
    assert seconds_to(curve(0.3, 0.74), 0.75) is None
    assert likely_seconds(curve(0.3, 0.74), 0.75) == (10.0, None)
    assert likely_seconds(curve(0.3, 0.4), 0.75) == (None, None)


def test_evaluations_that_do_not_say_how_many_samples_they_have_tell_nothing():
    assert likely_seconds(curve(0.3, 0.9, samples=0), 0.75) is None


@pytest.mark.parametrize(
    "ranges, shown",
    [
        ([(10.0, 30.0)], "10 to 30"),
        ([(10.0, 30.0), (20.0, 40.0)], "10 to 40"),
        ([(10.0, 30.0), (20.0, None)], "10 to never"),
        ([(None, None)], "never"),
        ([None], "-"),
    ],
)
def test_the_table_shows_the_widest_range_of_the_seeds(ranges: list[Any], shown: str):
    cells = {"sync": [metrics_of(target_range_s=found) for found in ranges]}
    table = comparison_markdown({"methods": columns(cells), "ratios": {}})
    titles, _, row = (line.split(" | ") for line in table.splitlines())
    assert dict(zip(titles, row, strict=True))["its range"] == shown
