"""Selector `all`: wait for every member and train on all of them, truncated ones too.

Plain GRPO when the budget gives `size` candidates. Remembers nothing between calls.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.plugins.actions import AnyAction
from pipeline.plugins.interfaces import SelectorEvent, Stateless, Wants
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize
from pipeline.plugins.views import GroupView


@register("selector", "all")
class All(Stateless):
    wants = Wants()

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not group.unended:
            members = [member for member in group.ended if not member.reward_failed]
            yield finalize(members, "all that were sampled")
