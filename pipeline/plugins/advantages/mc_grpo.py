"""Advantage `mc_grpo`: a member's reward less the median of its group, which is not trained on.

One candidate more than is trained on, an odd number in all: the median m is one member's reward.
That member, the pivot, has loss weight 0; the others have (r - m) / (MAD + 1e-3), MAD the median of
|r - m|, times n / (number of them that are not 0). To train on M members, let `group.size` be
M + 1.

Ours: among several members with the median's reward the last to arrive is the pivot; a group of
an even number has none; and where MAD is 0, as always with 0/1 rewards, the divisor is the
deviation instead (as published it is 1e-3 alone, and the minority gets about +-1000).
Source: MC-GRPO, arXiv 2601.22582 and its released program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import Array, ShapingOptions, shape
from pipeline.plugins.registry import register
from pipeline.plugins.views import Outcome

_EPSILON = 1e-3  # of the released program


class McGrpoOptions(ShapingOptions, frozen=True, kw_only=True):
    """Options of the `mc_grpo` advantage."""

    scale: Literal["mad", "std", "none"] = "mad"
    """What differences to the median are divided by: `mad`, their median size (the deviation
    where that is 0); `std`, the deviation of the sample; `none`: nothing."""


@register("advantage", "mc_grpo")
class McGrpo:
    Options = McGrpoOptions

    def __init__(self, options: McGrpoOptions | None = None) -> None:
        self._options = options or McGrpoOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        shaped = shape(members, self._options)
        if isinstance(shaped, NoSignal):
            return shaped
        median = float(np.median(shaped.rewards))
        values = (shaped.rewards - median) / self._divisor(shaped.rewards, median)
        if np.any(values):
            values = values * (len(values) / np.count_nonzero(values))
        answer = shaped.advantages(values, why=f"median {median:.4g}")
        if len(values) % 2 == 0:
            return answer
        pivot = int(np.flatnonzero(shaped.rewards == median)[-1])
        weights = answer.weights.copy()
        weights[pivot] = 0.0
        why = f"pivot {members[pivot].id}: the median, {median:.4g}"
        return msgspec.structs.replace(answer, weights=weights, why=why)

    def _divisor(self, rewards: Array, median: float) -> float:
        if self._options.scale == "none":
            return 1.0
        spread = float(np.median(np.abs(rewards - median)))
        if self._options.scale == "std" or spread == 0.0:
            spread = float(rewards.std(ddof=1))
        return spread + _EPSILON
