"""Advantage `grpo`: a member's reward less the mean of its group.

Turns a group's rewards into one advantage for each member; loss weights pass
through. A group whose rewards are all equal teaches nothing and is dropped. The
overlong penalty is added before the mean is taken, but equality is judged without
it, as DAPO judges by correctness.
Source: GRPO, arXiv 2402.03300; no division by the deviation, arXiv 2503.20783;
overlong penalty and dropping, DAPO, arXiv 2503.14476, equation 13 and section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.ranges import NonNegativeInt
from pipeline.plugins.registry import register
from pipeline.plugins.views import Outcome

_EPSILON = 1e-6  # verl's and TRL's order of magnitude; only guards a division


class GrpoOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `grpo` advantage."""

    divide_by_deviation: bool = False
    """Divide by the group's standard deviation (of the sample, n - 1), as in the first GRPO."""
    drop_equal: bool = False
    """Drop a group whose rewards are all equal, and ask another prompt in its place (DAPO);
    else it is trained on with advantage 0, and its tokens count in the step's mean."""
    overlong_tokens: NonNegativeInt = 0
    """Last tokens before the limit in which the reward falls linearly by up to 1; 0: off."""


def overlong_penalty(tokens: int, max_tokens: int, zone: int) -> float:
    """The penalty of this length: 0 before the last `zone` tokens, -1 at the limit.

    Linear in between, also where a budget sets a limit below `zone`.

    >>> [overlong_penalty(tokens, 100, 20) for tokens in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    if not zone:
        return 0.0
    start = max_tokens - zone
    return 0.0 - min(1.0, max(0.0, (tokens - start) / zone))


@register("advantage", "grpo")
class Grpo:
    Options = GrpoOptions

    def __init__(self, options: GrpoOptions | None = None) -> None:
        self._options = options or GrpoOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        if len(members) < 2:
            return NoSignal(why=f"{len(members)} rewarded member; a baseline needs two")
        rewards = np.array([member.reward for member in members], dtype=np.float64)
        if self._options.drop_equal and np.ptp(rewards) == 0.0:
            return NoSignal(why=f"every reward is {rewards[0]:g}")
        penalties = [
            overlong_penalty(member.tokens, member.max_tokens, self._options.overlong_tokens)
            for member in members
        ]
        shaped = rewards + np.array(penalties)
        values = shaped - shaped.mean()
        if self._options.divide_by_deviation:
            values = values / (shaped.std(ddof=1) + _EPSILON)
        weights = np.array([member.weight for member in members], dtype=np.float64)
        changed = sum(penalty < 0 for penalty in penalties)
        return Advantages(values=values, weights=weights, shaped=changed)
