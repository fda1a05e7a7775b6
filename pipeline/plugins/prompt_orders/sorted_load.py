"""Prompt order `sorted_load`: many shuffled prompts at once, and no others before they are used up.

A load is opened as far as the step has room (`step.reserve`, `learner.max_staleness`), the rest of
it as room comes. New prompts come only when nothing of the load is open or deferred: each is
trained on once a load, the long ones last, and no batch waits for a tail while short ones are left.
On-policy, what a step did not finish comes back deferred and is started again with the next
(SortedRL's strict mode); with stale tokens allowed it goes on (cached). The last step of a load may
be smaller; let the load be a multiple of `step.prompts`.
Source: SortedRL, arXiv 2603.23414, as we read it; the order of updates is batch rule `sorted`.
"""

from __future__ import annotations

from typing import Any

from pipeline.plugins.actions import Plan
from pipeline.plugins.prompt_orders.shuffled import Shuffled
from pipeline.plugins.ranges import NonNegativeInt
from pipeline.plugins.registry import register
from pipeline.plugins.views import PlanView
from pipeline.plugins.walk import OrderOptions, deferred_and_free


class SortedLoadOptions(OrderOptions, frozen=True, kw_only=True):
    """Options of the `sorted_load` order."""

    load: NonNegativeInt = 0
    """Prompts of a load; 0: as many as the step has room for when it begins."""


@register("prompt_order", "sorted_load")
class SortedLoad:
    Options = SortedLoadOptions

    def __init__(self, options: SortedLoadOptions | None = None, *, seed: int = 0) -> None:
        self._options = options or SortedLoadOptions()
        self._walk = Shuffled(options, seed=seed)
        self._left = 0  # prompts of the load that have yet to be opened

    @property
    def epochs(self) -> dict[str, float]:
        """Passes of the walk through each source."""
        return self._walk.epochs

    def plan(self, view: PlanView) -> Plan:
        """Returns what is left of the load; a new load when it is used up; else nothing."""
        again = deferred_and_free(view)
        why = ""
        if not (again or view.outstanding or self._left):
            self._left = self._options.load or view.want
            why = f"a load of {self._left}"
        again = again[: view.want]
        fresh = self._walk.fresh(view, min(view.want - len(again), self._left))
        self._left -= len(fresh)
        return Plan(prompts=(*again, *fresh), why=why)

    def state(self) -> dict[str, Any]:
        """Returns the walk's position, and how much of the load is left."""
        return {"version": 1, "walk": self._walk.state(), "left": self._left}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version or order wrote it."""
        if state.get("version") != 1 or "left" not in state:
            raise ValueError(f"state of sorted_load expected, version 1, found {list(state)}")
        self._walk.restore(state["walk"])
        self._left = int(state["left"])
