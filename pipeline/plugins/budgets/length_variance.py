"""Budget `length_variance`: more candidates for prompts whose responses vary more in length.

Turns the lengths of ended groups and the engines' latency into M' of every prompt.
The total is the one of the largest utility (`_utility`), spread by an exact greedy
allocation (`_allocation`) over what is remembered or guessed of each prompt
(`_spread`). Before 64 responses have finished the mean is half-way between its
bounds; while nothing is known of any prompt, all get the same.
Source: adaptive budget, arXiv 2605.30859.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pipeline.plugins.actions import Allocation
from pipeline.plugins.budgets._allocation import allocate_by_finish, allocate_candidates
from pipeline.plugins.budgets._generation import generation_seconds
from pipeline.plugins.budgets._spread import Estimate, Spread
from pipeline.plugins.budgets._top_up import BudgetOptions, more_candidates, most_candidates
from pipeline.plugins.budgets._utility import Choice, Lengths, Utility
from pipeline.plugins.ranges import NonNegativeFloat, NonNegativeInt, PositiveShare
from pipeline.plugins.registry import register
from pipeline.plugins.views import BudgetView, EndedView, OpenView, PromptView


class LengthVarianceOptions(BudgetOptions, frozen=True, kw_only=True):
    """Options of the `length_variance` budget."""

    memory: PositiveShare = 0.7
    """Weight of a group in its prompt's moving averages, above 0 to 1; a in the paper."""
    by: Literal["variance", "mth_finish"] = "variance"
    """What is minimised: `variance`, the sum of deviation / candidates, as published;
    `mth_finish`, the sum of the expected lengths at which M have finished."""
    mean: float = 0.0
    """Candidates of a prompt on average, for each trajectory trained on. 0: as many as the
    utility of a step asks for."""
    time_weight: NonNegativeFloat = 0.5
    """With `mean: 0`: what a step costs in utility, in units of the time that M candidates a
    prompt take; lambda in the paper. Within its bounds the mean is then at least
    M x (deviation / mean of lengths) / this. 0: as many as `most` allows."""
    spare: NonNegativeInt = 0
    """Candidates beyond M that every prompt gets at least: M_low = M + spare. 0 is as published,
    and leaves groups of little variance to wait for every candidate."""

    def problems(self, group_size: int) -> Iterator[str]:
        upper = most_candidates(self, group_size)
        if group_size + self.spare > upper:
            rule = f"at most {upper - group_size}"
            yield f"spare is {self.spare}, but most allows {upper} for {group_size}: {rule}"
        elif self.mean != 0:
            least = (group_size + self.spare) / group_size
            if not least <= self.mean <= self.most:
                yield f"mean is {self.mean}, expected 0, or from {least:g} to most ({self.most:g})"


@register("budget", "length_variance")
class LengthVariance:
    Options = LengthVarianceOptions

    def __init__(self, options: LengthVarianceOptions | None = None) -> None:
        self._options = options or LengthVarianceOptions()
        self._spread = Spread(self._options.memory)
        self._lengths = Lengths()
        self._limit = 0  # of a response, tokens, as the last plan had it; 0: none made yet
        self._metrics: dict[str, float] = {}

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        options = self._options
        self._limit = view.max_tokens
        high = most_candidates(options, view.size)
        low = min(view.size + options.spare, high)  # `Relax` makes both smaller
        choice = self._choose(view, low, high)
        total = math.floor(choice.mean * len(prompts) + 0.5)
        estimates = self._spread.estimates(prompts)
        bounds = {"total": total, "low": low, "high": high}
        if estimates is None:
            candidates = allocate_candidates([1.0] * len(prompts), **bounds)
        elif options.by == "variance":
            candidates = allocate_candidates([e.deviation for e in estimates], **bounds)
        else:
            means, deviations = [e.mean for e in estimates], [e.deviation for e in estimates]
            candidates = allocate_by_finish(means, deviations, size=view.size, **bounds)
        seen = sum(view.prompt in self._spread for view in prompts)
        self._metrics = {
            "total": total,
            "mean": total / max(1, len(prompts)),
            "known": seen,
            "unseen": len(prompts) - seen,
        }
        if not math.isnan(choice.utility):
            self._metrics["utility"] = choice.utility
            if laws := self._spread.laws(prompts):
                waits = [view.waits_for(count) for count in candidates.tolist()]
                seconds = generation_seconds(laws, candidates.tolist(), waits, view)
                self._metrics["generation_predicted_s"] = seconds
        notes = [_note(e) for e in estimates] if estimates else ["sigma unknown"] * len(prompts)
        return [
            Allocation(candidates=count, max_tokens=view.max_tokens, note=note)
            for count, note in zip(candidates.tolist(), notes, strict=True)
        ]

    def _choose(self, view: BudgetView, low: int, high: int) -> Choice:
        """M̄ and what it is expected to give; NaN while lengths are unknown."""
        fixed = min(max(self._options.mean * view.size, low), high) if self._options.mean else 0.0
        lengths = self._lengths.distribution(view.max_tokens)
        if lengths is None:
            return Choice(fixed or (low + high) / 2, math.nan)
        utility = Utility(lengths, view, self._options.time_weight)
        return utility.at(fixed) if fixed else utility.best(low, high)

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        return more_candidates(groups, idle, self._options)

    def ended(self, group: EndedView) -> None:
        """Learn the lengths of a group; what was cut short is a lower bound."""
        self._spread.observe(group, self._limit or math.inf)
        self._lengths.add(group.lengths, group.censored)

    def metrics(self) -> dict[str, float]:
        """Figures of the last plan: its candidates, in all and on average; prompts known and
        guessed; the step's utility and the seconds that it should take to generate, once lengths
        are known."""
        return dict(self._metrics)

    def state(self) -> dict[str, Any]:
        """Returns what was learnt from the groups that have ended."""
        return {
            "version": 1,
            "limit": self._limit,
            "prompts": self._spread.state(),
            "lengths": self._lengths.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 1:
            raise ValueError(f"state of length_variance: version {state.get('version')}, not 1")
        self._limit = int(state["limit"])
        self._spread.restore(state["prompts"])
        self._lengths.restore(state["lengths"])


def _note(estimate: Estimate) -> str:
    known = f"seen {estimate.times}x" if estimate.times else "guessed"
    return f"sigma {estimate.deviation:.1f} ({known})"
