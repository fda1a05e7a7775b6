"""Budget `tti`: short interactions first, then longer ones.

Turns the number of the step into the limit of tokens of the groups opened in it, a share of
`sampling.max_tokens` that grows as the published limit of turns does. Every prompt gets M
candidates.
Source: test-time interaction (TTI), arXiv 2506.07976: 10 turns in the first iteration, 20 in the
second and third, 30 from then on. Ours: a budget limits tokens, not turns, so a response may spend
its share on fewer and longer turns; the limit of turns itself is the environment's. Training on
successes alone is the advantage's and the batch rule's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from pipeline.plugins.actions import Allocation
from pipeline.plugins.budgets._top_up import BudgetOptions, more_candidates
from pipeline.plugins.ranges import PositiveInt
from pipeline.plugins.registry import register
from pipeline.plugins.views import BudgetView, OpenView, PromptView

Turns = Annotated[
    tuple[PositiveInt, ...], Meta(min_length=1, description="one or more, each at least 1")
]


class TtiOptions(BudgetOptions, frozen=True, kw_only=True):
    """Options of the `tti` budget."""

    turns: Turns = (10, 20, 20, 30)
    """Turns of each iteration; the last holds from there on, and the largest stands for
    `sampling.max_tokens`."""
    iteration: PositiveInt = 1
    """Steps of an iteration."""


def turns_at(step: int, options: TtiOptions) -> int:
    """Turns of the iteration that this step, from 0, is part of."""
    return options.turns[min(step // options.iteration, len(options.turns) - 1)]


@register("budget", "tti")
class Tti:
    Options = TtiOptions

    def __init__(self, options: TtiOptions | None = None) -> None:
        self._options = options or TtiOptions()
        self._limit = 0  # tokens, of the last plan

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        turns = turns_at(view.step, self._options)
        limit = max(1, view.max_tokens * turns // max(self._options.turns))
        allocation = Allocation(view.size, limit, f"{turns} turns, {limit} tokens")
        self._limit = limit
        return [allocation] * len(prompts)

    def metrics(self) -> dict[str, float]:
        """The limit of tokens now."""
        return {"limit": self._limit}

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        return more_candidates(groups, idle, self._options)
