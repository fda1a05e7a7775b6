"""Advantage `grpo_lambda`: as `grpo`, with a length penalty where most answers are right already.

Groups are ranked by their share of right answers. In the best share `best` of them a right answer
has the reward r - strength * sigmoid((length - mean) / deviation), over the lengths of the group's
right answers (population deviation; where that is 0, the sigmoid is 1/2); elsewhere rewards stay.
`scope: step` ranks the groups of a step, which then wait for each other. `scope: running`
compares a group with the last ones instead (ours, for streaming): the penalty applies from their
quantile 1 - `best` on, and to no group before 16 are known.
Source: GRPO-lambda, arXiv 2505.18086; the form of the penalty and both numbers are our reading.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import (
    Array,
    CorrectOptions,
    Shaped,
    less_mean,
    right,
    shape,
)
from pipeline.plugins.ranges import NonNegativeFloat, PositiveInt, Share
from pipeline.plugins.registry import register
from pipeline.plugins.views import GroupOutcome, Outcome

_AT_LEAST = 16  # groups before which a quantile says little


class GrpoLambdaOptions(CorrectOptions, frozen=True, kw_only=True):
    """Options of the `grpo_lambda` advantage."""

    best: Share = 0.2
    """Share of groups, those with the most right answers, in which length is penalised; lambda in
    the paper."""
    strength: NonNegativeFloat = 0.2
    """Most that a right answer loses by its length; alpha."""
    scope: Literal["running", "step"] = "running"
    """`running`: compare a group with the last ones; `step`: with the others of its step, which
    then wait for each other."""
    window: PositiveInt = 512
    """Groups that `scope: running` looks back on."""


def shortened(lengths: Array, strength: float) -> Array:
    """What each right answer keeps of a reward of 1, by the lengths of all of them.

    >>> shortened(np.array([100.0, 200.0, 300.0]), 0.2).round(6).tolist()
    [0.954579, 0.9, 0.845421]
    """
    deviation = lengths.std()
    scores = (lengths - lengths.mean()) / deviation if deviation else np.zeros(len(lengths))
    return 1.0 - strength / (1.0 + np.exp(-scores))


def best_groups(ratios: Sequence[float], best: float) -> list[int]:
    """Indices of the share `best` with the highest ratios, halves up, ties to the earlier.

    >>> best_groups([1, 0.5, 0.75, 0.25], 0.5)
    [0, 2]
    """
    ranked = sorted(range(len(ratios)), key=lambda index: (-ratios[index], index))
    return sorted(ranked[: int(best * len(ratios) + 0.5)])


@register("advantage", "grpo_lambda")
class GrpoLambda:
    Options = GrpoLambdaOptions

    def __init__(self, options: GrpoLambdaOptions | None = None) -> None:
        self._options = options or GrpoLambdaOptions()
        self._recent: deque[float] = deque(maxlen=self._options.window)  # ratios
        if self._options.scope == "step":
            self.of_step = self._of_step  # offered only where groups have to wait

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        shaped = shape(members, self._options, keep_equal=True)
        if isinstance(shaped, NoSignal):
            return shaped
        ratio = self._ratio(members)
        if self._options.scope == "step":
            # whether lengths will matter in a group that is all right is not known yet
            if self._options.drop_equal and ratio < 1.0:
                shaped = shape(members, self._options)
            return self._answer(members, shaped, penalised=False, why="")
        bar = self._bar()
        self._recent.append(ratio)
        penalised = bar is not None and 0.0 < ratio >= bar
        if self._options.drop_equal and not penalised:
            shaped = shape(members, self._options)
        why = "" if bar is None else f"{ratio:.2f} right, length counts from {bar:.2f} on"
        return self._answer(members, shaped, penalised, why)

    def _of_step(self, groups: Sequence[GroupOutcome]) -> Sequence[Advantages]:
        """The same with the penalty in the best groups of the step."""
        ratios = [self._ratio(group.members) for group in groups]
        best = set(best_groups(ratios, self._options.best))
        answers: list[Advantages] = []
        for index, group in enumerate(groups):
            shaped = shape(group.members, self._options, keep_equal=True)
            why = f"{ratios[index]:.2f} right, among the best {len(best)} of {len(groups)}"
            answer = self._answer(group.members, shaped, index in best, why * (index in best))
            assert isinstance(answer, Advantages), "a group of a step has two members or more"
            answers.append(answer)
        return answers

    def _ratio(self, members: Sequence[Outcome]) -> float:
        return float(right(members, self._options).mean())

    def _bar(self) -> float | None:
        """The ratio from which on lengths count; None: too few groups are known."""
        if len(self._recent) < min(_AT_LEAST, self._options.window):
            return None
        return float(np.quantile(np.array(self._recent), 1.0 - self._options.best))

    def _answer(
        self, members: Sequence[Outcome], shaped: Shaped | NoSignal, penalised: bool, why: str
    ) -> Advantages | NoSignal:
        if isinstance(shaped, NoSignal):
            return shaped
        rewards, chosen = shaped.rewards.copy(), right(members, self._options)
        changed = int(chosen.sum()) if penalised else 0
        if changed:
            rewards[chosen] -= 1.0 - shortened(shaped.lengths[chosen], self._options.strength)
        return shaped.advantages(less_mean(rewards, self._options), changed=changed, why=why)

    def state(self) -> dict[str, Any]:
        """Returns the last groups' shares of right answers."""
        return {"version": 1, "recent": list(self._recent)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 1:
            raise ValueError(f"state of grpo_lambda: version {state.get('version')}, not 1")
        self._recent.clear()
        self._recent.extend(float(ratio) for ratio in state["recent"])
