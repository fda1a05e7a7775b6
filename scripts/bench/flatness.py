"""Samples of a long run's descriptors, memory and files -> a verdict: do they stay flat?

Pure. A slope is the median of the slopes between all pairs (Theil-Sen): a restarted process makes
a step, not a trend.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

WARM_UP = 0.25
"""Share of the run that is left out at its start: caches fill, allocators grow."""
LEAST = 8
"""Smallest number of samples after the warm-up for a verdict."""
PAIRS = 1000
"""Largest number of samples for a slope, evenly chosen: the number of pairs is its square."""
ALLOWED: dict[str, tuple[float, float]] = {
    "descriptors": (4.0, 0.05),
    "threads": (4.0, 0.05),
    "MiB": (24.0, 0.05),
    "entries": (2.0, 0.0),
}
"""Growth after the warm-up that counts as flat, by unit: absolute, or a share of the level if that
is more. A leak has the same slope and more growth in a longer run."""


class Series(msgspec.Struct, kw_only=True):
    """One measure of one process over time."""

    of: str  # "stage", "e0", "memory files"
    unit: str  # a key of ALLOWED
    times_s: list[float] = []
    values: list[float] = []

    def add_sample(self, time_s: float, value: float) -> None:
        self.times_s.append(time_s)
        self.values.append(value)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on a series."""

    of: str
    unit: str
    samples: int
    first: float  # median of the first quarter of the samples
    last: float  # median of the last quarter
    slope_per_hour: float  # after the warm-up
    growth: float  # by that slope, over the time after the warm-up
    flat: bool


def slope(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Returns the median slope between all pairs, per second.

    >>> slope([0, 1, 2, 3, 4], [5, 7, 9, 11, 100])
    2.0
    """
    step = max(1, len(times_s) // PAIRS)
    times, found = np.asarray(times_s, float)[::step], np.asarray(values, float)[::step]
    at, to = np.triu_indices(len(times), 1)
    return float(np.median((found[to] - found[at]) / (times[to] - times[at])))


def series_row(series: Series, seconds: float) -> Row | None:
    """Judges one series of a run of `seconds` seconds; None if it has too few samples."""
    kept = [
        (at, value)
        for at, value in zip(series.times_s, series.values, strict=True)
        if at >= WARM_UP * seconds
    ]
    if len(kept) < LEAST:
        return None
    quarter = max(1, len(series.values) // 4)
    per_second = slope([at for at, _ in kept], [value for _, value in kept])
    growth = per_second * (kept[-1][0] - kept[0][0])
    absolute, share = ALLOWED[series.unit]
    level = statistics.median(value for _, value in kept)
    return Row(
        of=series.of,
        unit=series.unit,
        samples=len(series.values),
        first=statistics.median(series.values[:quarter]),
        last=statistics.median(series.values[-quarter:]),
        slope_per_hour=3600 * per_second,
        growth=growth,
        flat=growth <= max(absolute, share * level),
    )


def flatness_table(rows: Sequence[Row]) -> list[str]:
    """Formats the rows as Markdown."""
    head = ["| of | unit | samples | first quarter | last quarter | an hour | flat |"]
    head += ["|---|---|---|---|---|---|---|"]
    return head + [
        f"| {r.of} | {r.unit} | {r.samples} | {r.first:.1f} | {r.last:.1f} "
        f"| {r.slope_per_hour:+.1f} | {'yes' if r.flat else 'NO'} |"
        for r in rows
    ]


def flatness_verdict(rows: Sequence[Row], faults: Mapping[str, int]) -> str:
    """Returns the verdict in one line."""
    grown = [f"{r.unit} of {r.of} by {r.growth:.1f}" for r in rows if not r.flat]
    count = sum(faults.values())
    if not rows:
        return "too short to say anything"
    if grown:
        return f"NOT flat under {count} faults: {', '.join(grown)}"
    return f"flat under {count} faults: descriptors, threads, memory, memory files and sockets"
