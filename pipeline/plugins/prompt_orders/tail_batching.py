"""Prompt order `tail_batching`: short rounds over shuffled prompts, long ones for what they left.

A short round opens more prompts than the step needs (`step.reserve`), each with more
candidates than are trained on (the budget's redundancy), and trains on those that
complete first. Prompts that come back deferred wait in the long queue. Once it holds
as many as a step needs, the next step is a long round: the oldest of them and no
others, M candidates each, all waited for. So every prompt is trained on and the long
ones wait for each other, not a whole step for one of them. Without a reserve nothing is
deferred and every round is a short one that waits.

The queue is the view's `deferred`, kept by the core. Invariant: a prompt that waits in
it is planned in a short round only when no other is left (the end of the data).
Source: tail batching, RollPacker, arXiv 2509.21009.
"""

from __future__ import annotations

from typing import Any

from pipeline.plugins.actions import Plan
from pipeline.plugins.prompt_orders.shuffled import Shuffled
from pipeline.plugins.registry import register
from pipeline.plugins.views import PlanView
from pipeline.plugins.walk import OrderOptions, deferred_and_free


class TailBatchingOptions(OrderOptions, frozen=True, kw_only=True):
    """Options of the `tail_batching` order."""

    speculate: bool = False
    """Whether long rounds, too, sample more candidates than are trained on, as budget and
    top-up say. RollPacker's do not; in simulation it is where half of the time goes."""


@register("prompt_order", "tail_batching")
class TailBatching:
    Options = TailBatchingOptions

    def __init__(self, options: TailBatchingOptions | None = None, *, seed: int = 0) -> None:
        self._speculate = options is not None and options.speculate
        self._walk = Shuffled(options, seed=seed)
        self._long = False  # the open step is a long round

    @property
    def epochs(self) -> dict[str, float]:
        """Passes of the walk through each source."""
        return self._walk.epochs

    def plan(self, view: PlanView) -> Plan:
        """Returns up to `view.want` prompts of the walk, or up to `view.need` of the long queue.

        In a long round whose groups teach nothing, the queue fills up before the walk does.
        """
        queue = deferred_and_free(view)
        if view.first:
            self._long = len(queue) >= view.need
        if not self._long:
            fresh = self._walk.fresh(view, view.want)
            if fresh or not view.first:
                return Plan(prompts=(*fresh, *queue[: view.want - len(fresh)]))
            self._long = True  # the walk has none left: the queue's last ones go all the same
        wanted = min(view.want, view.need)
        planned = queue[:wanted]
        fresh = self._walk.fresh(view, wanted - len(planned))
        return Plan(prompts=(*planned, *fresh), speculate=self._speculate)

    def state(self) -> dict[str, Any]:
        """Returns the walk's position, and whether the open step is a long round."""
        return {"version": 1, "walk": self._walk.state(), "long": self._long}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version or order wrote it."""
        if state.get("version") != 1 or "walk" not in state:
            raise ValueError(f"state of tail_batching expected, version 1, found {state}")
        self._walk.restore(state["walk"])
        self._long = bool(state["long"])
