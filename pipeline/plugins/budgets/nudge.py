"""Budget `nudge`: members of a group are sampled with short hints, some of them without.

Turns the M candidates of a prompt into equal parts, one a hint; of each part as many as a coin of
`without` says are sampled without it. A hint is a column of the data, stands behind the prompt, and
is never trained on. The coins follow from `seed`, prompt and step.
Source: NudgeRL, arXiv 2605.15726, and its code: 2 hints, 4 candidates each, coins of 1/2. What it
makes of them, advantages within and between hints and a loss on the bare prompt, is the
advantage's and the loss's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Annotated

from msgspec import Meta

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Allocation
from pipeline.plugins.ranges import NonEmpty, NonNegativeInt, Share
from pipeline.plugins.registry import register
from pipeline.plugins.views import BudgetView, OpenView, PromptView

Columns = Annotated[
    tuple[NonEmpty, ...], Meta(min_length=1, description="one or more, none of them empty")
]


class NudgeOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `nudge` budget."""

    hints: Columns = ("hint_1", "hint_2")
    """Columns of the data, one a hint."""
    without: Share = 0.5
    """Probability that a candidate is sampled without its hint."""
    seed: NonNegativeInt = 0
    """Of the coins."""

    def problems(self, group_size: int) -> Iterator[str]:
        if len(self.hints) > group_size:
            yield f"hints are {len(self.hints)}, but group.size is {group_size}: at most that many"


@register("budget", "nudge")
class Nudge:
    Options = NudgeOptions

    def __init__(self, options: NudgeOptions | None = None) -> None:
        self._options = options or NudgeOptions()

    @property
    def variants(self) -> tuple[str, ...]:
        """Columns that it names, looked up before a run."""
        return self._options.hints

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        return [self._of(prompt.prompt, view) for prompt in prompts]

    def _of(self, prompt: int, view: BudgetView) -> Allocation:
        hints, without = self._options.hints, self._options.without
        rng = random.Random(f"{self._options.seed}/{view.step}/{prompt}")
        each = view.size // len(hints)
        drawn = [(sum(rng.random() >= without for _ in range(each)), hint) for hint in hints]
        variants = tuple((count, hint) for count, hint in drawn if count)
        bare = view.size - sum(count for count, _ in variants)
        return Allocation(
            candidates=view.size,
            max_tokens=view.max_tokens,
            note=f"{bare} without a hint",
            variants=variants,
        )

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        return ()
