"""Advantage `reinforce_plus_plus`: reward less the group's mean, normalised over the whole batch.

The deviation of one group of a few members is a poor estimate, and dividing by it makes easy and
hard prompts count alike; that of the batch is neither. Mean and deviation are taken over tokens,
as the released programs do (OpenRLHF, verl): a member counts as often as it has tokens.

`scope: step` is the published form: known when the step is complete, so its groups wait for each
other. `scope: running` is ours, for streaming: each group is divided by the root mean square of the
last groups' advantages, its own included, and the batch's mean, which is near 0, stays.
Source: REINFORCE++ with a group baseline, arXiv 2501.03262.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import EPSILON, ShapingOptions, shape, weighted_mean
from pipeline.plugins.ranges import PositiveInt
from pipeline.plugins.registry import register
from pipeline.plugins.views import GroupOutcome, Outcome


class ReinforcePlusPlusOptions(ShapingOptions, frozen=True, kw_only=True):
    """Options of the `reinforce_plus_plus` advantage."""

    scope: Literal["step", "running"] = "step"
    """`step`: over the groups of the step, which then wait for each other; `running`: over the
    last groups, and each is trained on as soon as it is ready."""
    window: PositiveInt = 256
    """Groups that `scope: running` looks back on."""


@register("advantage", "reinforce_plus_plus")
class ReinforcePlusPlus:
    Options = ReinforcePlusPlusOptions

    def __init__(self, options: ReinforcePlusPlusOptions | None = None) -> None:
        self._options = options or ReinforcePlusPlusOptions()
        # (tokens, sum of squared advantages over them) of the last groups
        self._recent: deque[tuple[float, float]] = deque(maxlen=self._options.window)
        if self._options.scope == "step":
            self.of_step = self._of_step  # offered only where groups have to wait

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        """Less the group's mean; with `scope: running` divided by the running deviation."""
        shaped = shape(members, self._options)
        if isinstance(shaped, NoSignal):
            return shaped
        values = shaped.rewards - shaped.rewards.mean()
        if self._options.scope == "step":
            return shaped.advantages(values)
        squares = float((values**2 * shaped.lengths).sum())
        self._recent.append((float(shaped.lengths.sum()), squares))
        tokens, squares = (sum(column) for column in zip(*self._recent, strict=True))
        deviation = (squares / max(tokens, 1.0)) ** 0.5
        why = f"deviation {deviation:.4g} over {len(self._recent)} groups"
        return shaped.advantages(values / (deviation + EPSILON), why=why)

    def _of_step(self, groups: Sequence[GroupOutcome]) -> Sequence[Advantages]:
        """All advantages of the step less their mean, divided by their deviation."""
        answers = [self.advantages(group.members) for group in groups]
        plain = [answer for answer in answers if isinstance(answer, Advantages)]
        assert len(plain) == len(groups), "each had a signal when it was asked about alone"
        values = np.concatenate([answer.values for answer in plain])
        tokens = np.array([m.tokens for group in groups for m in group.members], dtype=np.float64)
        mean = weighted_mean(values, tokens)
        deviation = weighted_mean((values - mean) ** 2, tokens) ** 0.5
        why = f"less {mean:.4g}, divided by {deviation:.4g}"
        return [
            msgspec.structs.replace(
                answer, values=(answer.values - mean) / (deviation + EPSILON), why=why
            )
            for answer in plain
        ]

    def state(self) -> dict[str, Any]:
        """Returns what the running deviation is taken from."""
        return {"version": 1, "recent": [list(group) for group in self._recent]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 1:
            raise ValueError(f"state of reinforce_plus_plus: version {state.get('version')}, not 1")
        self._recent.clear()
        self._recent.extend((float(tokens), float(squares)) for tokens, squares in state["recent"])
