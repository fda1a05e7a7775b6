"""Selector `ulorl`: sample at most one segment of a response in a step.

Turns a member's growth past the end of a segment into a `Park` until the step has ended; it then
continues with its tokens, and nothing waits for the longest. What has ended is trained on at once,
with its whole group. A group that would be too old after the publish is not parked: with fewer
versions of staleness than segments the last ones run through (`learner.max_staleness`).
Remembers nothing between calls.
Source: UloRL, arXiv 2507.19766 (128k tokens in 8 segments). Ours: a segment ends where the
response passes a multiple of its length, not so many tokens after it was resumed. The limit of the
whole response is `sampling.max_tokens`; masking of mastered tokens is a matter of the loss.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction, Park
from pipeline.plugins.interfaces import Every, SelectorEvent, Wants
from pipeline.plugins.ranges import PositiveInt
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize, may_wait
from pipeline.plugins.views import GroupView


class UlorlOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `ulorl` selector."""

    segment: PositiveInt = 16384
    """Tokens of a segment; `sampling.max_tokens` / 8 as published."""


@register("selector", "ulorl")
class Ulorl:
    Options = UlorlOptions

    def __init__(self, options: UlorlOptions | None = None) -> None:
        self._options = options or UlorlOptions()
        self.wants = Wants(every=self._options.segment)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not group.unended:
            members = [member for member in group.ended if not member.reward_failed]
            yield finalize(members, "all that were sampled")
        elif isinstance(event, Every) and may_wait(group):
            running = [m for m in group.members if m.id == event.trajectory]
            for member in running:
                if member.state == "running":
                    why = f"segment {member.tokens // self._options.segment} is full"
                    yield Park(ids=(member.id,), until="published", why=why, kind="segment")
