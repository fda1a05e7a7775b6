"""Prompt order `sequential`: each source in its own order, epoch after epoch."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plugins.registry import register
from pipeline.plugins.walk import OrderOptions, Walk


@register("prompt_order", "sequential")
class Sequential(Walk):
    Options = OrderOptions

    def __init__(self, options: OrderOptions | None = None, *, seed: int = 0) -> None:
        super().__init__(options or OrderOptions(), _as_it_is)
        del seed  # every order is given one


def _as_it_is(source: int, epoch: int, count: int) -> Sequence[int]:
    return range(count)
