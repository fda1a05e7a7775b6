"""Advantage `rorecomp`: as `grpo`, and a step trains on short right and long wrong answers first.

Over all responses of a step the right ones are ranked by length, short first, and the wrong ones
long first; the first share `first` of each is trained on, and the others have loss weight 0. Their
rewards stay in the baselines. In every `every`-th step nothing is left out, which stands for the
published compensation batches, drawn from a buffer of what was left out. Groups of a step wait
for each other.
Source: RoRecomp, arXiv 2509.25958, of which the fraction is ours; so is the compensation, since
parts of groups are not kept, and that its period does not grow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import CorrectOptions, by_group_mean
from pipeline.plugins.ranges import PositiveInt, PositiveShare
from pipeline.plugins.registry import register
from pipeline.plugins.views import GroupOutcome, Outcome


class RorecompOptions(CorrectOptions, frozen=True, kw_only=True):
    """Options of the `rorecomp` advantage."""

    first: PositiveShare = 0.5
    """Share of the right answers, and of the wrong ones, that is trained on; alpha."""
    every: PositiveInt = 4
    """Steps from one in which nothing is left out to the next; 1: nothing ever is."""


def priority(lengths: Sequence[int], right: Sequence[bool], first: float) -> list[int]:
    """Places of the responses that come first, in order: short right ones and long wrong ones, a
    share of each, one at least; ties in order.

    >>> priority([100, 300, 500, 800], [True, True, False, False], 0.5)
    [0, 3]
    """
    passed = sorted((i for i, ok in enumerate(right) if ok), key=lambda i: lengths[i])
    failed = sorted((i for i, ok in enumerate(right) if not ok), key=lambda i: -lengths[i])
    return sorted(i for part in (passed, failed) for i in part[: math.ceil(first * len(part))])


@register("advantage", "rorecomp")
class Rorecomp:
    Options = RorecompOptions

    def __init__(self, options: RorecompOptions | None = None) -> None:
        self._options = options or RorecompOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        return by_group_mean(members, self._options)

    def of_step(self, groups: Sequence[GroupOutcome]) -> Sequence[Advantages]:
        """The same, with weight 0 for what does not come first."""
        members = [member for group in groups for member in group.members]
        right = [member.reward >= self._options.correct for member in members]
        chosen = set(priority([m.tokens for m in members], right, self._options.first))
        if not members or (members[0].step + 1) % self._options.every == 0:
            chosen = set(range(len(members)))
        answers: list[Advantages] = []
        place = 0
        for group in groups:
            answer = self.advantages(group.members)
            assert isinstance(answer, Advantages), "it had a signal when it was asked about alone"
            kept = [place + i in chosen for i in range(len(group.members))]
            place += len(kept)
            weights = np.where(kept, answer.weights, 0.0)
            why = f"{sum(kept)} of {len(kept)} come first"
            answers.append(msgspec.structs.replace(answer, weights=weights, why=why))
        return answers
