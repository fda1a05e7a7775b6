"""Selector `dars`: a second stage of candidates for prompts that are hard.

Turns the accuracy of a group's first M candidates into more of them, until the summed advantage
of the group is what it would be at an accuracy of one half (`equal`), or up to twice that, more the
harder the prompt (`hardness`). All candidates of both stages are trained on, so groups differ in
size. Prompts with half of their answers right, or more, get none. Remembers nothing between calls.
Source: DARS, arXiv 2508.13755, equal treatment and hardness weighting. Its "B" for breadth, several
passes over one large batch, is `step.prompts` and the learner's. Give M candidates at first
(`budget.uniform.redundancy: 1`), and no spare groups (`step.reserve: 0`), or those that are left
over would be the hard ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from msgspec import Meta

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction, Sample
from pipeline.plugins.interfaces import SelectorEvent, Wants
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize, mean_reward, scored, settled
from pipeline.plugins.views import GroupView

_ROUNDING = 1e-9  # what may be missing to a whole candidate


class DarsOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `dars` selector."""

    schedule: Literal["equal", "hardness"] = "equal"
    """What a hard prompt's summed advantage is brought to: `equal`, that of a prompt half of whose
    answers are right (ET in the paper); `hardness`, 2 (1 - accuracy) times that (HW)."""
    most: Annotated[float, Meta(ge=1, le=64)] = 4.0
    """Candidates of a group at most, for each of the first M. As published 4 with `equal` (8, then
    up to 32) and 8 with `hardness` (up to 64)."""
    divide_by_deviation: bool = False
    """True if the advantage divides by the group's deviation."""


def second_stage(accuracy: float, first: int, options: DarsOptions) -> int:
    """How many more candidates a prompt gets.

    Args:
        accuracy: share of its `first` candidates that are right.
    """
    if accuracy >= 0.5:
        return 0
    right = accuracy or 0.5 / first
    spread = right * (1 - right)
    summed = 2 * math.sqrt(spread) if options.divide_by_deviation else 2 * spread
    aim = first * (1.0 if options.divide_by_deviation else 0.5)
    if options.schedule == "hardness":
        aim *= 2 * (1 - right)
    more = math.ceil((aim - first * summed) / summed - _ROUNDING)
    return max(0, min(more, math.floor(options.most * first) - first))


@register("selector", "dars")
class Dars:
    Options = DarsOptions
    wants = Wants(reward=True)

    def __init__(self, options: DarsOptions | None = None) -> None:
        self._options = options or DarsOptions()

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not settled(group):
            return
        members = scored(group)
        first = sorted(members, key=lambda member: member.id)[: group.size]
        if len(first) < 2:
            yield finalize(members, "all that were sampled")
            return
        accuracy = min(max(mean_reward(first), 0.0), 1.0)
        why = f"accuracy {accuracy:.2f} of the first {len(first)}"
        more = group.size + second_stage(accuracy, group.size, self._options) - group.budget
        if more > 0:
            yield Sample(n=more, why=why, kind="second_stage")
        else:
            kind = "second_stage" if group.budget > group.size else ""
            yield finalize(members, why, kind=kind)
