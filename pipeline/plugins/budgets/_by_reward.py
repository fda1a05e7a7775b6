"""Spreads a step's candidates over prompts by what their rewards promise; shared by two budgets.

The sum over prompts of promise / candidates is minimised exactly (`_allocation`), within bounds.
While nothing is known every prompt gets the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

from msgspec import Meta

from pipeline.plugins.actions import Allocation
from pipeline.plugins.budgets._allocation import allocate_candidates
from pipeline.plugins.budgets._rewards import Known, MemoryOptions, Rewards
from pipeline.plugins.budgets._top_up import more_candidates, most_candidates
from pipeline.plugins.ranges import NonNegativeInt
from pipeline.plugins.views import BudgetView, EndedView, OpenView, PromptView


class ByRewardOptions(MemoryOptions, frozen=True, kw_only=True):
    """Options of budgets that spread candidates by rewards."""

    mean: Annotated[float, Meta(gt=0, le=64)] = 1.0
    """Candidates of a prompt on average, for each of M."""
    least: Annotated[float, Meta(gt=0, le=64)] = 0.5
    """Candidates of a prompt at least, for each of M; two in any case."""
    neighbours: NonNegativeInt = 8
    """Prompts of like length that a prompt without rewards yet is taken to resemble; 0: all."""

    def problems(self, group_size: int) -> Iterator[str]:
        if not self.least <= self.mean <= self.most:
            rule = f"from least ({self.least:g}) to most ({self.most:g})"
            yield f"mean is {self.mean:g}, expected {rule}"


class ByReward:
    """A budget, but for what a prompt's candidates promise."""

    def __init__(self, options: ByRewardOptions, promise: Callable[[Known], float]) -> None:
        self._options, self._promise = options, promise
        self._rewards = Rewards(options)
        self._metrics: dict[str, float] = {}

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        options = self._options
        high = most_candidates(options, view.size)
        low = min(max(2, math.floor(options.least * view.size + 0.5)), high)
        wanted = math.floor(options.mean * view.size * len(prompts) + 0.5)
        total = min(max(wanted, low * len(prompts)), high * len(prompts))
        found = self._rewards.of(prompts, options.neighbours)
        promises = [self._promise(k) for k in found] if found else [1.0] * len(prompts)
        counts = allocate_candidates(promises, total=total, low=low, high=high).tolist()
        seen = sum(view.prompt in self._rewards for view in prompts)
        self._metrics = {"total": total, "known": seen, "unseen": len(prompts) - seen}
        notes = [f"reward {k.mean:.2f}" for k in found] if found else ["unknown"] * len(prompts)
        return [
            Allocation(candidates=count, max_tokens=view.max_tokens, note=note)
            for count, note in zip(counts, notes, strict=True)
        ]

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        return more_candidates(groups, idle, self._options)

    def ended(self, group: EndedView) -> None:
        """Learn the rewards of a group."""
        self._rewards.observe(group)

    def metrics(self) -> dict[str, float]:
        """Candidates of the last plan; prompts known and guessed."""
        return dict(self._metrics)

    def state(self) -> dict[str, Any]:
        """Returns what was learnt from the groups that have ended."""
        return {"version": 1, "prompts": self._rewards.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 1:
            raise ValueError(f"state of a budget by reward: version {state.get('version')}, not 1")
        self._rewards.restore(state["prompts"])
