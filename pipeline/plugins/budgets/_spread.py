"""Groups that have ended -> mean and variance of the response length of any prompt.

A prompt that was sampled before has a moving average, kept across epochs; any
other is guessed by regression on what is known of those. Nothing known: no answer.
Source: adaptive budget, arXiv 2605.30859; the regression is ours. No clock, no
randomness.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.plugins.budgets._censored import Lognormal, lognormal, moments
from pipeline.plugins.views import EndedView, PromptView

_RECENT = 4096  # prompts that the regression sees, the last that ended: the policy moves
_RIDGE = 1.0  # prompts' worth of doubt about each slope, and about each tag
_LEAST_VARIANCE = 1 / 12  # tokens squared: of rounding to whole tokens

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


class Known(msgspec.Struct, frozen=True):
    """Lengths seen of one prompt."""

    tokens: int  # length of the prompt
    tag: str
    mean: float  # of its response lengths, tokens; moving average
    variance: float  # tokens squared; moving average
    times: int  # groups that it rests on


class Estimate(msgspec.Struct, frozen=True):
    """Response lengths of one prompt."""

    mean: float  # tokens
    deviation: float  # tokens
    times: int = 0  # groups of this prompt that it rests on; 0: guessed


class Spread:
    """Memory of response lengths by prompt.

    Args:
        memory: weight of a new observation, above 0, at most 1; a in the paper.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._known: dict[int, Known] = {}  # in the order of the last end

    def __contains__(self, prompt: int) -> bool:
        return prompt in self._known

    def observe(self, group: EndedView, limit: float) -> None:
        """Learn from a group; new = a * observed + (1 - a) * old, of mean and variance.

        A group that says nothing (one candidate, or all cut short and nothing known to
        complete them by) changes nothing.

        Args:
            group: with censored lengths as lower bounds.
            limit: tokens that no response exceeds, infinity if there is none.
        """
        found = moments(group.lengths, group.censored, limit, self._law(group))
        if found is None:
            return
        mean, variance = found
        old = self._known.pop(group.prompt, None)
        times = 1
        if old is not None:
            a = self._memory
            mean = a * mean + (1 - a) * old.mean
            variance = a * variance + (1 - a) * old.variance
            times = old.times + 1
        self._known[group.prompt] = Known(group.tokens, group.tag, mean, variance, times)

    def estimates(self, prompts: Sequence[PromptView]) -> list[Estimate] | None:
        """One a prompt, in order; None while nothing is known of any prompt."""
        if not self._known:
            return None
        unseen = [view for view in prompts if view.prompt not in self._known]
        guesses = iter(_Regression(self._recent()).of(unseen) if unseen else ())
        return [
            self._remembered(view.prompt) if view.prompt in self._known else next(guesses)
            for view in prompts
        ]

    def laws(self, prompts: Sequence[PromptView]) -> list[Lognormal] | None:
        """Return a law of lengths for each prompt, in order; None while nothing is known.

        One that was never sampled gets the law of another one, of those that ended last in turn:
        unlike a guess of its mean, these differ as prompts do.
        """
        if not self._known:
            return None
        others = itertools.cycle(self._recent()[: len(prompts)])
        found = (self._known.get(view.prompt) or next(others) for view in prompts)
        return [lognormal(k.mean, max(k.variance, _LEAST_VARIANCE)) for k in found]

    def _remembered(self, prompt: int) -> Estimate:
        known = self._known[prompt]
        return Estimate(known.mean, math.sqrt(max(known.variance, _LEAST_VARIANCE)), known.times)

    def _recent(self) -> list[Known]:
        return list(itertools.islice(reversed(self._known.values()), _RECENT))

    def _law(self, group: EndedView) -> Lognormal | None:
        """Returns what was known before this group; used where its own lengths say too little."""
        if len(group.censored) - sum(group.censored) >= 2:
            return None
        view = PromptView(prompt=group.prompt, tokens=group.tokens, tag=group.tag)
        known = self.estimates([view])
        return lognormal(known[0].mean, known[0].deviation ** 2) if known else None

    def state(self) -> list[list[Any]]:
        """A row a prompt: its number and the fields of `Known`, in the order of the last end."""
        return [[prompt, *msgspec.structs.astuple(k)] for prompt, k in self._known.items()]

    def restore(self, rows: Sequence[Sequence[Any]]) -> None:
        self._known = {int(row[0]): Known(*row[1:]) for row in rows}


class _Regression:
    """Ridge regression of log variance and of log mean on log prompt length and tag mean.

    Closed form, (X'X + I)^-1 X'y on centred columns. A tag's mean is drawn to that of all by
    one prompt's worth, an unknown tag has that of all. No guess leaves the range of what is known.
    """

    def __init__(self, known: Sequence[Known]) -> None:
        self._row = {tag: row for row, tag in enumerate(sorted({k.tag for k in known}))}
        rows = np.array([self._row[k.tag] for k in known])
        lengths = np.log([max(1, k.tokens) for k in known])
        self._middle = float(lengths.mean())
        self._of_variance = _Line(
            lengths - self._middle, rows, np.log([max(k.variance, _LEAST_VARIANCE) for k in known])
        )
        self._of_mean = _Line(lengths - self._middle, rows, np.log([k.mean for k in known]))

    def of(self, prompts: Sequence[PromptView]) -> list[Estimate]:
        """A guess for each."""
        length_P = np.log([max(1, view.tokens) for view in prompts]) - self._middle
        tag_P = np.array([self._row.get(view.tag, len(self._row)) for view in prompts])
        means = np.exp(self._of_mean.at(length_P, tag_P)).tolist()
        deviations = np.exp(self._of_variance.at(length_P, tag_P) / 2).tolist()
        return [Estimate(*metrics) for metrics in zip(means, deviations, strict=True)]


class _Line:
    """One target: its mean, two slopes, a mean for each tag."""

    def __init__(self, length_N: Floats, tag_N: Rows, target_N: Floats) -> None:
        self._middle = float(target_N.mean())
        self._ends = float(target_N.min()), float(target_N.max())
        off_N = target_N - self._middle
        tags_K = np.bincount(tag_N, off_N) / (np.bincount(tag_N) + _RIDGE)
        self._tags_K = np.append(tags_K, 0.0)  # the last: a tag that is not known
        columns = np.stack([length_N, tags_K[tag_N]])
        doubt = _RIDGE * np.eye(2)
        self._slopes = np.linalg.solve(columns @ columns.T + doubt, columns @ off_N)

    def at(self, length_P: Floats, tag_P: Rows) -> Floats:
        offset_P = self._slopes @ np.stack([length_P, self._tags_K[tag_P]])
        return np.clip(self._middle + offset_P, *self._ends)
