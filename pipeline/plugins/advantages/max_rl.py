"""Advantage `max_rl`: a member's reward less the mean of its group, divided by that mean.

Expected reward weighs every prompt alike; the likelihood of a right answer weighs a prompt by
1 / (success rate). Among n samples with 0/1 rewards, the mean of the right ones' gradients is an
unbiased estimate of the gradient of log p, cut after n terms of its series in 1 - p: pass@1 +
pass@2 / 2 + ... + pass@n / n. With n = 1 that is plain reinforcement learning, with n without end
maximum likelihood. Taking the mean of all gradients off gives (r - mean) / mean.

A group without a right answer has advantage 0, as in the released programs; that keeps a bias of
-p (1 - p)^n times the gradient of the logit (ours, by hand). The divisor is the mean without the
overlong penalty, which could bring it to 0. Rewards are 0 or more.
Source: MaxRL, arXiv 2602.02710.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import ShapingOptions, shape
from pipeline.plugins.registry import register
from pipeline.plugins.views import Outcome


class MaxRlOptions(ShapingOptions, frozen=True, kw_only=True):
    """Options of the `max_rl` advantage."""


@register("advantage", "max_rl")
class MaxRl:
    Options = MaxRlOptions

    def __init__(self, options: MaxRlOptions | None = None) -> None:
        self._options = options or MaxRlOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        shaped = shape(members, self._options)
        if isinstance(shaped, NoSignal):
            return shaped
        rate = float(np.mean([member.reward for member in members]))
        if rate <= 0:
            return shaped.advantages(np.zeros(len(members)), why="no right answer")
        values = (shaped.rewards - shaped.rewards.mean()) / rate
        return shaped.advantages(values, why=f"divided by {rate:.4g}")
