"""Selector `first_m`: train on the first M candidates to finish, abort the rest.

Turns a view of one group into at most one action; remembers nothing between calls.
Source: tail pruning, arXiv 2605.30859.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.plugins.actions import AnyAction
from pipeline.plugins.interfaces import SelectorEvent, Stateless, Wants
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import filled_to_size, finalize, usable
from pipeline.plugins.views import GroupView


@register("selector", "first_m")
class FirstM(Stateless):
    wants = Wants()

    def waits_for(self, candidates: int, size: int) -> int:
        return min(size, candidates)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        enough = len(usable(group)) >= group.size
        if not enough and group.unended:  # a lost engine's members are queued, not gone
            return
        yield finalize(filled_to_size(group), "first M" if enough else "all that ended")
