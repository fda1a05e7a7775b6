"""Batch rule `fifo`: train on groups as they become ready, close when there are enough.

Groups that are enough count: the barrier makes them finalize. Remembers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.plugins import Stateless, register
from pipeline.verbs import BatchVerb, Close, Take
from pipeline.views import BatchView


@register("batch", "fifo")
class Fifo(Stateless):
    def decide(self, view: BatchView) -> Iterable[BatchVerb]:
        if view.ready:
            yield Take(groups=view.ready)
        coming = view.taken + len(view.ready) + view.chosen + view.enough
        if coming >= view.need and not view.closing:
            yield Close()
