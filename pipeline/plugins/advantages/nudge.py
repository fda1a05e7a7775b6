"""Advantage `nudge`: gains within a hint and between hints, put together and normalised.

A group's members answer the same question behind different hints (`Outcome.variant`; '' is the
bare prompt). With mu the mean of the group and mu_c that of a member's hint: behind a hint
a = (r - mu_c) + between * (mu_c - mu), without one a = r - mu. Then A = (a - mean a) / (std a +
1e-5), over the group, population deviation. The paper's second term, which distils hinted
responses into the bare prompt, is a matter of the loss and not here.
Source: NudgeRL, arXiv 2605.15726 and its released program.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import ShapingOptions, shape
from pipeline.plugins.ranges import NonNegativeFloat
from pipeline.plugins.registry import register
from pipeline.plugins.views import Outcome

_EPSILON = 1e-5  # of the released program


class NudgeOptions(ShapingOptions, frozen=True, kw_only=True):
    """Options of the `nudge` advantage."""

    between: NonNegativeFloat = 1.1
    """Factor of what a hint gains over the group; lambda. 1: hints make no difference."""


@register("advantage", "nudge")
class Nudge:
    Options = NudgeOptions

    def __init__(self, options: NudgeOptions | None = None) -> None:
        self._options = options or NudgeOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        shaped = shape(members, self._options)
        if isinstance(shaped, NoSignal):
            return shaped
        rewards, mean = shaped.rewards, shaped.rewards.mean()
        variants = np.array([member.variant for member in members])
        values = rewards - mean
        for hint in sorted({member.variant for member in members} - {""}):
            here = variants == hint
            own = rewards[here].mean()
            values[here] = rewards[here] - own + self._options.between * (own - mean)
        values = (values - values.mean()) / (values.std() + _EPSILON)
        hinted = int((variants != "").sum())
        return shaped.advantages(values, why=f"{hinted} of {len(members)} behind a hint")
