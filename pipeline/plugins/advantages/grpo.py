"""Advantage `grpo`: a member's reward less the mean of its group.

Turns a group's rewards into one advantage for each member; loss weights pass
through. A group whose rewards are all equal teaches nothing and is dropped, if so
asked. The overlong penalty is added before the mean is taken.
Source: GRPO, arXiv 2402.03300; no division by the deviation, Dr.GRPO, arXiv 2503.20783;
overlong penalty and dropping, DAPO, arXiv 2503.14476.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import GroupMeanOptions, by_group_mean
from pipeline.plugins.registry import register
from pipeline.plugins.views import Outcome


class GrpoOptions(GroupMeanOptions, frozen=True, kw_only=True):
    """Options of the `grpo` advantage."""


@register("advantage", "grpo")
class Grpo:
    Options = GrpoOptions

    def __init__(self, options: GrpoOptions | None = None) -> None:
        self._options = options or GrpoOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        return by_group_mean(members, self._options)
