"""Budget `siri`: the limit of tokens falls and rises in cycles of steps.

Turns the number of the step into the limit of groups opened in it, between `sampling.max_tokens`
and a share of that; a response keeps the limit that its group was opened with. Every prompt gets M
candidates. A response at the limit is truncated, which most rewards call wrong.
Source: SIRI, arXiv 2509.25176: a cosine that begins at the upper end,
L(t) = low + (high - low) (1 + cos(2 pi t / T)) / 2, and names of two other shapes. Their form is
ours: `stair`, the upper end for half a cycle, then the lower one; `stair_cosine`, down to the lower
end at once, and back along the cosine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pipeline.plugins.actions import Allocation
from pipeline.plugins.budgets._top_up import BudgetOptions, more_candidates
from pipeline.plugins.ranges import PositiveInt, PositiveShare
from pipeline.plugins.registry import register
from pipeline.plugins.views import BudgetView, OpenView, PromptView

Shape = Literal["cosine", "stair", "stair_cosine"]


class SiriOptions(BudgetOptions, frozen=True, kw_only=True):
    """Options of the `siri` budget."""

    shape: Shape = "cosine"
    """How the limit moves within a cycle."""
    period: PositiveInt = 640
    """Steps of a cycle."""
    low: PositiveShare = 0.5
    """Lower end of the limit, for each of `sampling.max_tokens`; 8k of 16k as published."""


def limit_at(step: int, high: int, options: SiriOptions) -> int:
    """Tokens that a response of this step may have, `high` at most."""
    phase = step % options.period / options.period
    if options.shape == "stair":
        share = 1.0 if phase < 0.5 else 0.0
    elif options.shape == "stair_cosine" and phase < 0.5:
        share = 0.0
    else:
        share = (1 + math.cos(2 * math.pi * phase)) / 2
    low = options.low * high
    return max(1, math.floor(low + (high - low) * share + 1e-9))


@register("budget", "siri")
class Siri:
    Options = SiriOptions

    def __init__(self, options: SiriOptions | None = None) -> None:
        self._options = options or SiriOptions()
        self._limit = 0  # tokens, of the last plan

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        limit = limit_at(view.step, view.max_tokens, self._options)
        allocation = Allocation(view.size, limit, f"limit {limit}")
        self._limit = limit
        return [allocation] * len(prompts)

    def metrics(self) -> dict[str, float]:
        """The limit of tokens now."""
        return {"limit": self._limit}

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        return more_candidates(groups, idle, self._options)
