"""Selector `shortest`: wait for every candidate, train on the M shortest.

Truncated ones are taken only when fewer than M others exist; ties go by arrival.
At the barrier the M shortest finished by then are taken, where there are as many.
Remembers nothing between calls.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.plugins.actions import AnyAction
from pipeline.plugins.interfaces import Barrier, SelectorEvent, Stateless, Wants
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import filled_to_size, finalize, shortest_first, usable
from pipeline.plugins.views import GroupView


@register("selector", "shortest")
class Shortest(Stateless):
    wants = Wants()

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        members = shortest_first(usable(group))
        enough = len(members) >= group.size
        if group.unended and not (enough and isinstance(event, Barrier)):
            return
        if enough:
            by = "of those finished at the barrier" if group.unended else "of all"
            yield finalize(members[: group.size], f"{group.size} shortest {by}")
        else:
            yield finalize(filled_to_size(group), "all that ended")
