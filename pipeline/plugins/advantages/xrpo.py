"""Advantage `xrpo`: as `grpo`, and more for right answers that the model thought unlikely.

A right answer's advantage A becomes A + min(max(strength * (1 - eta), 0), cap * A), where
eta = exp(s - mean s), s its mean logprob when it was sampled and mean s that of the group: an
answer likelier than the group's has no bonus. Where all answers are right A is 0, and so is the
bonus.
Source: XRPO, arXiv 2510.06672, the sharpening of the advantage; both constants are ours, and the
logprobs are those of the engine. Its rounds of sampling are a matter of the budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import (
    Array,
    CorrectOptions,
    less_mean,
    right,
    shape,
)
from pipeline.plugins.ranges import NonNegativeFloat
from pipeline.plugins.registry import register
from pipeline.plugins.views import Outcome


class XrpoOptions(CorrectOptions, frozen=True, kw_only=True):
    """Options of the `xrpo` advantage."""

    strength: NonNegativeFloat = 1.0
    """Bonus of a right answer with a likelihood far below the group's; lambda_n."""
    cap: NonNegativeFloat = 1.0
    """The bonus is at most so many times the advantage; kappa."""


def bonus(advantage: Array, eta: Array, strength: float, cap: float) -> Array:
    """What right answers get on top, by their likelihood relative to the group's.

    >>> bonus(np.array([1.0]), np.array([0.8]), 2.0, 0.3).tolist()
    [0.3]
    """
    return np.minimum(np.maximum(strength * (1.0 - eta), 0.0), cap * np.maximum(advantage, 0.0))


@register("advantage", "xrpo")
class Xrpo:
    Options = XrpoOptions

    def __init__(self, options: XrpoOptions | None = None) -> None:
        self._options = options or XrpoOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        shaped = shape(members, self._options)
        if isinstance(shaped, NoSignal):
            return shaped
        values = less_mean(shaped.rewards, self._options)
        scores = np.array([member.confidence for member in members])
        eta = np.exp(scores - scores.mean())
        more = bonus(values, eta, self._options.strength, self._options.cap)
        more = np.where(right(members, self._options), more, 0.0)
        raised = int((more > 0).sum())
        why = f"{raised} right answers were unlikely" if raised else ""
        return shaped.advantages(values + more, why=why)
