"""Splits a step's groups into mini-batches, the same on every rank (sans-I/O)."""

from __future__ import annotations

import random
from collections.abc import Sequence


def mini_batches(
    groups: Sequence[int], *, updates: int, epochs: int, step: int
) -> list[tuple[int, ...]]:
    """Split the groups into `updates` parts of nearly equal size, once per epoch.

    The first epoch keeps the given order, later ones shuffle it by (step, epoch).
    With fewer groups than updates there are fewer mini-batches: none is empty.

    >>> mini_batches([4, 5, 6, 7, 8], updates=2, epochs=1, step=0)
    [(4, 5), (6, 7, 8)]
    """
    found: list[tuple[int, ...]] = []
    parts = min(updates, len(groups))
    for epoch in range(epochs):
        order = list(groups)
        if epoch:
            random.Random(f"{step}/{epoch}").shuffle(order)
        for part in range(parts):
            begin, end = (len(order) * at // parts for at in (part, part + 1))
            found.append(tuple(order[begin:end]))
    return found
