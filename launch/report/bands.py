"""Curves of several seeds -> one line with a band. Pure.

A line is the median over seeds, its band reaches from the lowest to the highest.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """One line; all of one length."""

    x: list[float]
    low: list[float]
    middle: list[float]
    high: list[float]


def band(seeds: Sequence[Sequence[tuple[float, float]]]) -> Band:
    """Median, lowest and highest over seeds.

    Seeds meet at the same steps but not at the same seconds: each is read between its
    points, from where the last of them begins to where the first of them ends.

    Args:
        seeds: of each seed its points, at least one, in the order of x.
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
