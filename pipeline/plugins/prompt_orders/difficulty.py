"""Prompt order `difficulty`: prompts whose success rate is near a half, drawn by chance.

P(prompt) ~ exp(-|rate - target| / temperature), without replacement among those that are not open.
The published order predicts the rate of every prompt with attention over a rolled-out reference
set; here it is a running mean of the prompt's own groups (ours: no embeddings, no extra rollouts),
and one that has not been tried counts as `unseen`, so that all are tried first. Prompts
that come back deferred are planned first. There are no epochs: the run ends with its steps. Where
the data set has several sources, weight / prompts of a source is a factor of the chance.
Source: difficulty-targeted online selection, arXiv 2506.05316; its replay is batch rule `replay`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Plan
from pipeline.plugins.ranges import PositiveFloat, PositiveShare, Share
from pipeline.plugins.registry import register
from pipeline.plugins.views import EndedView, PlanView
from pipeline.plugins.walk import deferred_and_free

Array = npt.NDArray[np.float64]


class DifficultyOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `difficulty` order."""

    target: Share = 0.5
    """Success rate that is wanted; alpha."""
    temperature: PositiveFloat = 1e-3
    """Distance from the target at which a prompt's chance has fallen to 1/e; tau."""
    unseen: Share = 0.5
    """Success rate of a prompt that has not been tried."""
    newest: PositiveShare = 0.5
    """Weight of the newest group in a prompt's success rate; 1: that group alone."""


def log_chances(rates: Array, target: float, temperature: float) -> Array:
    """Logarithms of the prompts' chances, up to a constant: exp itself would be 0."""
    return -np.abs(rates - target) / temperature


@register("prompt_order", "difficulty")
class Difficulty:
    Options = DifficultyOptions

    def __init__(self, options: DifficultyOptions | None = None, *, seed: int = 0) -> None:
        self._options = options or DifficultyOptions()
        self._seed = seed
        self._draws = 0
        self._rates: Array = np.zeros(0)  # by prompt; NaN: not tried

    def plan(self, view: PlanView) -> Plan:
        again = deferred_and_free(view)[: view.want]
        drawn = self._draw(view, view.want - len(again))
        return Plan(prompts=(*again, *drawn))

    def _draw(self, view: PlanView, want: int) -> list[int]:
        """Draw without replacement: the largest of log chance + Gumbel noise."""
        want = min(want, view.dataset)
        if want < 1:
            return []
        self._size(view.dataset)
        known = self._rates[: view.dataset]
        rates = np.where(np.isnan(known), self._options.unseen, known)
        keys = log_chances(rates, self._options.target, self._options.temperature)
        for source in view.sources if len(view.sources) > 1 else ():
            share = source.weight / max(1, source.count)
            keys[source.first : source.first + source.count] += np.log(share)
        uniform = np.random.default_rng([self._seed, self._draws]).random(view.dataset)
        self._draws += 1
        keys -= np.log(-np.log(uniform.clip(1e-12, 1 - 1e-12)))
        closed = [p for p in (*view.outstanding, *view.deferred) if p < view.dataset]
        keys[closed] = -np.inf
        best = np.argpartition(-keys, want - 1)[:want]
        best = best[np.argsort(-keys[best], kind="stable")]
        return [int(prompt) for prompt in best if keys[prompt] > -np.inf]

    def ended(self, group: EndedView) -> None:
        """Note how often a prompt was solved, however its group ended."""
        if not group.rewards:
            return
        self._size(group.prompt + 1)
        before, now = self._rates[group.prompt], float(np.mean(group.rewards))
        newest = 1.0 if np.isnan(before) else self._options.newest
        self._rates[group.prompt] = now if newest == 1.0 else before + newest * (now - before)

    def _size(self, prompts: int) -> None:
        missing = prompts - len(self._rates)
        if missing > 0:
            self._rates = np.concatenate([self._rates, np.full(missing, np.nan)])

    def state(self) -> dict[str, Any]:
        """Returns the success rates so far, and how often prompts have been drawn."""
        tried = np.flatnonzero(~np.isnan(self._rates))
        rates = self._rates[tried]
        return {
            "version": 1,
            "draws": self._draws,
            "prompts": tried.tolist(),
            "rates": rates.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version or order wrote it."""
        if state.get("version") != 1 or "rates" not in state:
            raise ValueError(f"state of difficulty expected, version 1, found {list(state)}")
        self._draws = int(state["draws"])
        self._rates = np.zeros(0)
        self._size(max(state["prompts"], default=-1) + 1)
        self._rates[state["prompts"]] = state["rates"]
