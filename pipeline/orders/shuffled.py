"""Prompt order `shuffled`: another order each epoch, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pipeline.orders._walk import OrderOptions, Walk
from pipeline.plugins import register


@register("prompts", "shuffled")
class Shuffled(Walk):
    Options = OrderOptions

    def __init__(self, options: OrderOptions | None = None, *, seed: int = 0) -> None:
        super().__init__(options or OrderOptions(), self._permutation_of)
        self._seed = seed

    def _permutation_of(self, epoch: int, dataset: int) -> Sequence[int]:
        order = list(range(dataset))
        random.Random(f"{self._seed}/shuffled/{epoch}").shuffle(order)
        return order
