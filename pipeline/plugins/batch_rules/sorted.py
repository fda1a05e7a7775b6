"""Batch rule `sorted`: as `fifo`, with the groups that finished first before the others.

Where more groups are ready than the step needs, `fifo` takes the oldest; this takes those that
became ready first, so short ones before long ones: a curriculum by length within a load of prompts
(order `sorted_load`). A group is ready when its rewards are in, too; several that become so
at one moment are taken oldest first.
Source: SortedRL, arXiv 2603.23414. APRIL's batch, the first groups to complete, is the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from pipeline.plugins.actions import BatchAction
from pipeline.plugins.batch_rules.fifo import Fifo
from pipeline.plugins.interfaces import Options, Stateless
from pipeline.plugins.registry import register
from pipeline.plugins.views import BatchView


@register("batch", "sorted")
class Sorted(Stateless):
    """Has no options, but remembers in which order groups became ready."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._order: list[int] = []
        self._fifo = Fifo()

    def decide(self, view: BatchView) -> Iterable[BatchAction]:
        if not view.taken:  # those that were taken have ended, or a resume has given them back
            live = set(view.groups())
            self._order = [group for group in self._order if group in live]
        known, ready = set(self._order), set(view.ready)
        self._order += [group for group in view.ready if group not in known]
        in_order = tuple(group for group in self._order if group in ready)
        return self._fifo.decide(msgspec.structs.replace(view, ready=in_order))

    def state(self) -> dict[str, Any]:
        """Returns the order in which groups became ready."""
        return {"version": 1, "order": list(self._order)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError if another version wrote it."""
        if state.get("version") != 1:
            raise ValueError(f"state of sorted: version {state.get('version')}, not 1")
        self._order = [int(group) for group in state["order"]]
