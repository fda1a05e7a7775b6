"""Advantage `opo`: a member's reward less the mean of its group, weighted by length.

The baseline with which the gradient varies least, if the gradients of single tokens are
uncorrelated and of one size: then the square of a response's gradient grows with its length,
and b = sum(length * reward) / sum(length). For on-policy steps, as published.
Source: OPO, arXiv 2505.23585. A response cut by its limit counts with the tokens that it has.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import ShapingOptions, shape, weighted_mean
from pipeline.plugins.registry import register
from pipeline.plugins.views import Outcome


class OpoOptions(ShapingOptions, frozen=True, kw_only=True):
    """Options of the `opo` advantage."""


@register("advantage", "opo")
class Opo:
    Options = OpoOptions

    def __init__(self, options: OpoOptions | None = None) -> None:
        self._options = options or OpoOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        shaped = shape(members, self._options)
        if isinstance(shaped, NoSignal):
            return shaped
        baseline = weighted_mean(shaped.rewards, shaped.lengths)
        return shaped.advantages(shaped.rewards - baseline, why=f"baseline {baseline:.4g}")
