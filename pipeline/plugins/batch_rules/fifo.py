"""Batch rule `fifo`: train on groups as they become ready, close when there are enough.

Groups that are enough count: the barrier makes them finalize. Where generation may
run ahead, groups that would be too old for the next step come first, and the step
may grow by them. Remembers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from pipeline.plugins.actions import BatchAction, Close, Take
from pipeline.plugins.interfaces import Stateless
from pipeline.plugins.registry import register
from pipeline.plugins.views import BatchView


@register("batch", "fifo")
class Fifo(Stateless):
    def decide(self, view: BatchView) -> Iterable[BatchAction]:
        taking = view.ready
        if view.ahead:  # the others are for the next step
            room = max(0, view.need - view.taken - len(view.due))
            due = set(view.due)
            taking = view.due + tuple(islice((g for g in view.ready if g not in due), room))
        if taking:
            yield Take(groups=taking)
        coming = view.taken + len(view.ready) + view.chosen + view.enough
        if coming >= view.need and not view.closing:
            yield Close()
