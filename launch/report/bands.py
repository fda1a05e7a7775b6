"""Curves of several seeds -> one line (the median) with a band (lowest to highest). Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """One line with its band; all lists have the same length."""

    x: list[float]
    low: list[float]
    middle: list[float]
    high: list[float]


def band(seeds: Sequence[Sequence[tuple[float, float]]]) -> Band:
    """Returns median, lowest and highest over seeds.

    Seeds share steps but not seconds: each is interpolated, over the range that all seeds cover.

    Args:
        seeds: the points of each seed, at least one, in the order of x.
    """
    begin, end = max(s[0][0] for s in seeds), min(s[-1][0] for s in seeds)
    grid = np.array(sorted({x for seed in seeds for x, _ in seed if begin <= x <= end}))
    lines = np.array([np.interp(grid, [x for x, _ in s], [y for _, y in s]) for s in seeds])
    return Band(
        x=grid.tolist(),
        low=lines.min(axis=0).tolist(),
        middle=np.median(lines, axis=0).tolist(),
        high=lines.max(axis=0).tolist(),
    )
