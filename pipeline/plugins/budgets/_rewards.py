"""Groups that have ended -> what is known of the rewards of any prompt.

A prompt that was sampled before has moving averages, kept across epochs; any other is guessed from
those of like length. Nothing known: no answer. No clock, no randomness.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline.plugins.budgets._top_up import BudgetOptions
from pipeline.plugins.ranges import PositiveShare
from pipeline.plugins.views import EndedView, PromptView


class MemoryOptions(BudgetOptions, frozen=True, kw_only=True):
    """Options of the budgets that remember rewards."""

    memory: PositiveShare = 0.7
    """Weight of a group in its prompt's moving averages, above 0 to 1."""


class Known(msgspec.Struct, frozen=True):
    """Rewards seen of one prompt."""

    tokens: int  # length of the prompt
    mean: float  # moving average
    variance: float  # of the sample, moving average


class Rewards:
    """Memory of rewards by prompt."""

    def __init__(self, options: MemoryOptions) -> None:
        self._memory = options.memory
        self._known: dict[int, Known] = {}

    def __contains__(self, prompt: int) -> bool:
        return prompt in self._known

    def get(self, prompt: int) -> Known | None:
        return self._known.get(prompt)

    def observe(self, group: EndedView) -> None:
        """Learn from a group; one with fewer than two rewards changes nothing."""
        if len(group.rewards) < 2:
            return
        mean, variance = statistics.fmean(group.rewards), statistics.variance(group.rewards)
        if old := self._known.get(group.prompt):
            mean = self._memory * mean + (1 - self._memory) * old.mean
            variance = self._memory * variance + (1 - self._memory) * old.variance
        self._known[group.prompt] = Known(group.tokens, mean, variance)

    def of(self, prompts: Sequence[PromptView], neighbours: int) -> list[Known] | None:
        """One a prompt, in order; None while nothing is known of any.

        Args:
            neighbours: known prompts, the nearest in length, whose mean stands for an unseen one;
                0: all known ones.
        """
        if not self._known:
            return None
        known = list(self._known.values())
        return [self._known.get(p.prompt) or _guess(p.tokens, known, neighbours) for p in prompts]

    def state(self) -> list[list[Any]]:
        """A row a prompt: its number and the fields of `Known`."""
        return [[prompt, *msgspec.structs.astuple(k)] for prompt, k in self._known.items()]

    def restore(self, rows: Sequence[Sequence[Any]]) -> None:
        self._known = {int(row[0]): Known(*row[1:]) for row in rows}


def _guess(tokens: int, known: Sequence[Known], neighbours: int) -> Known:
    near = sorted(known, key=lambda k: abs(k.tokens - tokens))[: neighbours or None]
    mean = math.fsum(k.mean for k in near) / len(near)
    return Known(tokens, mean, math.fsum(k.variance for k in near) / len(near))
