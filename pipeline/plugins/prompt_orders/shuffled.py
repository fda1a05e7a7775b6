"""Prompt order `shuffled`: another order each epoch of a source, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pipeline.plugins.registry import register
from pipeline.plugins.walk import OrderOptions, Walk


@register("prompt_order", "shuffled")
class Shuffled(Walk):
    Options = OrderOptions

    def __init__(self, options: OrderOptions | None = None, *, seed: int = 0) -> None:
        super().__init__(options or OrderOptions(), self._permutation_of)
        self._seed = seed

    def _permutation_of(self, source: int, epoch: int, count: int) -> Sequence[int]:
        order = list(range(count))
        drawn = f"{self._seed}/shuffled/{epoch}" + (f"/{source}" if source else "")
        random.Random(drawn).shuffle(order)
        return order
