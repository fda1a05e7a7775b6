"""Advantage `rloo`: a member's reward less the mean of the others.

The baseline of a member does not hold its own reward, so it is unbiased: the advantages of
`grpo` (not divided), n / (n - 1) times as large.
Source: RLOO, arXiv 2402.14740, equation 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import ShapingOptions, shape
from pipeline.plugins.registry import register
from pipeline.plugins.views import Outcome


class RlooOptions(ShapingOptions, frozen=True, kw_only=True):
    """Options of the `rloo` advantage."""


@register("advantage", "rloo")
class Rloo:
    Options = RlooOptions

    def __init__(self, options: RlooOptions | None = None) -> None:
        self._options = options or RlooOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        shaped = shape(members, self._options)
        if isinstance(shaped, NoSignal):
            return shaped
        others = len(members) - 1
        return shaped.advantages((shaped.rewards - shaped.rewards.mean()) * len(members) / others)
