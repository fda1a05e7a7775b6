"""Prompt order `predictive`: shuffled, and prompts that taught nothing last time come seldom.

A prompt whose last group had equal rewards, all right or all wrong, is forecast to teach nothing
again: when its turn comes it is drawn with a small probability, else it is passed over until the
next epoch. Where nothing else is left to plan, it is planned all the same. Prompts that come back
deferred are planned first.
Source: predictive dynamic sampling, with DOT, arXiv 2601.03969; the forecast and its probability
are our reading.
"""

from __future__ import annotations

import random
from typing import Any

from pipeline.plugins.actions import Plan
from pipeline.plugins.prompt_orders.shuffled import Shuffled
from pipeline.plugins.ranges import Share
from pipeline.plugins.registry import register
from pipeline.plugins.views import EndedView, PlanView
from pipeline.plugins.walk import OrderOptions, deferred_and_free


class PredictiveOptions(OrderOptions, frozen=True, kw_only=True):
    """Options of the `predictive` order."""

    chance: Share = 0.1
    """Probability that a prompt whose last group had equal rewards is planned in its turn."""


@register("prompt_order", "predictive")
class Predictive:
    Options = PredictiveOptions

    def __init__(self, options: PredictiveOptions | None = None, *, seed: int = 0) -> None:
        self._options = options or PredictiveOptions()
        self._seed = seed
        self._walk = Shuffled(options, seed=seed)
        self._settled: set[int] = set()  # prompts whose last group had equal rewards
        self._draws = 0

    @property
    def epochs(self) -> dict[str, float]:
        """Passes of the walk through each source."""
        return self._walk.epochs

    def plan(self, view: PlanView) -> Plan:
        planned = deferred_and_free(view)[: view.want]
        skipped: list[int] = []
        while missing := view.want - len(planned):
            seen = {*planned, *skipped}
            turn = self._walk.fresh(view, missing, seen)
            for prompt in turn:
                (planned if self._drawn(prompt) else skipped).append(prompt)
            if len(turn) < missing:  # every prompt that is free has been looked at
                planned += skipped[: view.want - len(planned)]
                break
        return Plan(prompts=tuple(planned))

    def _drawn(self, prompt: int) -> bool:
        if prompt not in self._settled:
            return True
        self._draws += 1
        drawn = random.Random(f"{self._seed}/predictive/{self._draws}").random()
        return drawn < self._options.chance

    def ended(self, group: EndedView) -> None:
        """Note whether a prompt's rewards were equal, however its group ended."""
        if len(group.rewards) < 2:
            return
        if len(set(group.rewards)) == 1:
            self._settled.add(group.prompt)
        else:
            self._settled.discard(group.prompt)

    def state(self) -> dict[str, Any]:
        """Returns the walk's position, and what is known of prompts."""
        return {
            "version": 1,
            "walk": self._walk.state(),
            "settled": sorted(self._settled),
            "draws": self._draws,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version or order wrote it."""
        if state.get("version") != 1 or "settled" not in state:
            raise ValueError(f"state of predictive expected, version 1, found {list(state)}")
        self._walk.restore(state["walk"])
        self._settled = {int(prompt) for prompt in state["settled"]}
        self._draws = int(state["draws"])
