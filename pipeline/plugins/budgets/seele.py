"""Budget `seele`: a group begins with its first round of candidates, without a hint.

The selector `seele` samples the other rounds, each with as much of the solution as it takes.
Source: SEELE, arXiv 2509.06923; the number of rounds is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Allocation
from pipeline.plugins.ranges import PositiveInt
from pipeline.plugins.registry import register
from pipeline.plugins.views import BudgetView, OpenView, PromptView


class SeeleOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `seele` budget."""

    rounds: PositiveInt = 4
    """Rounds in which a group's M candidates are sampled; `selector.seele.rounds` says the same."""

    def problems(self, group_size: int) -> Iterator[str]:
        if self.rounds > group_size:
            yield f"rounds is {self.rounds}, but group.size is {group_size}: at most {group_size}"


@register("budget", "seele")
class Seele:
    Options = SeeleOptions

    def __init__(self, options: SeeleOptions | None = None) -> None:
        self._options = options or SeeleOptions()

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        candidates = math.ceil(view.size / self._options.rounds)
        note = f"round 1 of {self._options.rounds}"
        allocation = Allocation(candidates=candidates, max_tokens=view.max_tokens, note=note)
        return [allocation] * len(prompts)

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        return ()
