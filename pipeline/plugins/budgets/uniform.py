"""Budget `uniform`: every prompt gets the same number of candidates.

M' = redundancy x M, rounded to the nearest whole number, halves up, never below M.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.plugins.actions import Allocation
from pipeline.plugins.budgets._top_up import BudgetOptions, PerMember, more_candidates
from pipeline.plugins.registry import register
from pipeline.plugins.views import BudgetView, OpenView, PromptView


class UniformOptions(BudgetOptions, frozen=True, kw_only=True):
    """Options of the `uniform` budget."""

    redundancy: PerMember = 1.5
    """Candidates sampled for each trajectory trained on; 1: no spare."""


def candidates_of(options: UniformOptions, size: int) -> int:
    """M' for groups of `size`."""
    return max(size, math.floor(options.redundancy * size + 0.5))


@register("budget", "uniform")
class Uniform:
    Options = UniformOptions

    def __init__(self, options: UniformOptions | None = None) -> None:
        self._options = options or UniformOptions()

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        candidates = candidates_of(self._options, view.size)
        return [Allocation(candidates=candidates, max_tokens=view.max_tokens) for _ in prompts]

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        return more_candidates(groups, idle, self._options)
