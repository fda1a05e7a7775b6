"""Prompt order `pilot_pool`: shuffled; solved prompts sit out an epoch, hard ones come back.

The prompts' side of Pilot-Commit, whose selector spends a few pilots on each and commits to those
in between. A prompt whose mean reward reaches `exclude_from` is left out of the next epoch. One
that was too hard for now (the selector says `Defer`) goes back into the pool: it is as likely to be
planned as any other prompt that is left in the epoch. Pilots for more prompts than a step trains
on are `step.reserve`.
Source: Pilot-Commit, arXiv 2605.26606. How soon a hard prompt comes again is our reading.
"""

from __future__ import annotations

import random
from typing import Any

from pipeline.plugins.actions import Plan
from pipeline.plugins.prompt_orders.shuffled import Shuffled
from pipeline.plugins.ranges import PositiveFloat
from pipeline.plugins.registry import register
from pipeline.plugins.views import EndedView, PlanView
from pipeline.plugins.walk import OrderOptions, deferred_and_free


class PilotPoolOptions(OrderOptions, frozen=True, kw_only=True):
    """Options of the `pilot_pool` order."""

    exclude_from: PositiveFloat = 1.0
    """Mean reward of a prompt's group from which on the prompt is left out of the next epoch."""


@register("prompt_order", "pilot_pool")
class PilotPool:
    Options = PilotPoolOptions

    def __init__(self, options: PilotPoolOptions | None = None, *, seed: int = 0) -> None:
        self._options = options or PilotPoolOptions()
        self._seed = seed
        self._walk = Shuffled(options, seed=seed)
        self._excluded: set[int] = set()  # from their next turn
        self._plans = 0

    @property
    def epochs(self) -> dict[str, float]:
        """Passes of the walk through each source."""
        return self._walk.epochs

    def plan(self, view: PlanView) -> Plan:
        self._plans += 1
        rng = random.Random(f"{self._seed}/pilot_pool/{self._plans}")
        queue, planned = deferred_and_free(view), list[int]()
        while missing := view.want - len(planned):
            turns, left = 0, self._walk.left
            for _ in range(missing):  # each of the pool is as likely as any other
                if queue and rng.random() * (len(queue) + left) < len(queue):
                    planned.append(queue.pop(0))
                else:
                    turns, left = turns + 1, max(0, left - 1)
            found = self._walk.fresh(view, turns, set(planned))
            planned += [prompt for prompt in found if prompt not in self._excluded]
            self._excluded.difference_update(found)
            if len(found) < turns:  # the walk has none left
                planned += queue[: view.want - len(planned)]
                break
        return Plan(prompts=tuple(planned))

    def ended(self, group: EndedView) -> None:
        """Note a prompt that was solved."""
        rewards = group.rewards
        if rewards and sum(rewards) / len(rewards) >= self._options.exclude_from:
            self._excluded.add(group.prompt)

    def state(self) -> dict[str, Any]:
        """Returns the walk's position, and who sits out."""
        return {
            "version": 1,
            "walk": self._walk.state(),
            "excluded": sorted(self._excluded),
            "plans": self._plans,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version or order wrote it."""
        if state.get("version") != 1 or "excluded" not in state:
            raise ValueError(f"state of pilot_pool expected, version 1, found {list(state)}")
        self._walk.restore(state["walk"])
        self._excluded = {int(prompt) for prompt in state["excluded"]}
        self._plans = int(state["plans"])
