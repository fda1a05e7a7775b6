"""Advantage `duet`: a member's reward less the mean of its group, by the members' loss weights.

For selectors that prune by chance and finalize the survivors with the inverse of that chance
(`Finalize(ids, weights)`): the weighted mean stands for the whole group, and weighted advantages
sum to 0. Unbiased for a fixed baseline (Horvitz-Thompson); taking the weighted mean adds a bias
of order 1/n. With equal weights this is `grpo`.
Source: DUET, arXiv 2605.08441; the form of the baseline is our reading.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import ShapingOptions, shape, weighted_mean
from pipeline.plugins.registry import register
from pipeline.plugins.views import Outcome


class DuetOptions(ShapingOptions, frozen=True, kw_only=True):
    """Options of the `duet` advantage."""


@register("advantage", "duet")
class Duet:
    Options = DuetOptions

    def __init__(self, options: DuetOptions | None = None) -> None:
        self._options = options or DuetOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        shaped = shape(members, self._options)
        if isinstance(shaped, NoSignal):
            return shaped
        baseline = weighted_mean(shaped.rewards, shaped.weights)
        return shaped.advantages(shaped.rewards - baseline, why=f"baseline {baseline:.4g}")
