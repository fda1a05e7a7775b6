"""Budget `dart_gui`: fewer candidates for prompts that succeed, and limits from their successes.

Turns a prompt's success rate into M' (M up to a rate of `easy`, from there on fewer, two at
least), and its longest success so far into its limit of tokens, with some room; until the first
one the limit is `sampling.max_tokens`.
Source: DART-GUI, arXiv 2509.23866: that both follow the task. Ours: the numbers and the slope.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta

from pipeline.plugins.actions import Allocation
from pipeline.plugins.budgets._rewards import MemoryOptions, Rewards
from pipeline.plugins.budgets._top_up import more_candidates
from pipeline.plugins.ranges import AtLeastOne, PositiveFloat
from pipeline.plugins.registry import register
from pipeline.plugins.views import BudgetView, EndedView, OpenView, PromptView


class DartGuiOptions(MemoryOptions, frozen=True, kw_only=True):
    """Options of the `dart_gui` budget."""

    easy: Annotated[float, Meta(ge=0, lt=1)] = 0.6
    """Success rate up to which a prompt gets M candidates, from 0 to below 1."""
    room: AtLeastOne = 1.2
    """A prompt's limit of tokens, for each of its longest success."""
    right: PositiveFloat = 1.0
    """Reward from which on a response is a success."""


def candidates_at(rate: float, size: int, easy: float) -> int:
    """Candidates of a prompt with this success rate."""
    if rate <= easy:
        return size
    return min(size, max(2, math.floor(size * (1 - rate) / (1 - easy) + 0.5)))


@register("budget", "dart_gui")
class DartGui:
    Options = DartGuiOptions

    def __init__(self, options: DartGuiOptions | None = None) -> None:
        self._options = options or DartGuiOptions()
        self._rewards = Rewards(self._options)
        self._longest: dict[int, int] = {}  # prompt -> tokens of its longest success
        self._metrics: dict[str, float] = {}

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        found = [self._of(prompt.prompt, view) for prompt in prompts]
        known = sum(prompt.prompt in self._rewards for prompt in prompts)
        total = sum(allocation.candidates for allocation in found)
        self._metrics = {"total": total, "known": known, "unseen": len(prompts) - known}
        return found

    def metrics(self) -> dict[str, float]:
        """Candidates of the last plan; prompts known, which alone may get fewer, and unseen."""
        return dict(self._metrics)

    def _of(self, prompt: int, view: BudgetView) -> Allocation:
        known, longest = self._rewards.get(prompt), self._longest.get(prompt)
        rate = known.mean if known else 0.0
        limit = view.max_tokens
        if longest is not None:
            limit = min(limit, math.ceil(self._options.room * longest))
        note = f"success {rate:.2f}" if known else "unknown"
        candidates = candidates_at(rate, view.size, self._options.easy)
        return Allocation(candidates=candidates, max_tokens=limit, note=note)

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        return more_candidates(groups, idle, self._options)

    def ended(self, group: EndedView) -> None:
        """Learn success and lengths of a group."""
        self._rewards.observe(group)
        pairs = zip(group.scored, group.rewards, strict=False)
        longest = max((n for n, reward in pairs if reward >= self._options.right), default=0)
        if longest:
            self._longest[group.prompt] = max(longest, self._longest.get(group.prompt, 0))

    def state(self) -> dict[str, Any]:
        """Returns what was learnt from the groups that have ended."""
        longest = [list(item) for item in self._longest.items()]
        return {"version": 1, "prompts": self._rewards.state(), "longest": longest}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 1:
            raise ValueError(f"state of dart_gui: version {state.get('version')}, not 1")
        self._rewards.restore(state["prompts"])
        self._longest = {int(prompt): int(tokens) for prompt, tokens in state["longest"]}
