"""Selector `april`: when the step has enough groups, keep what is unfinished for the next one.

Turns the barrier into a `Park` of every unended member, tokens and logprobs kept; they continue
first in the next step, so that one response may hold tokens of several versions. A group that
would be too old after the publish is not parked, but finished in this step. With
`learner.max_staleness: 0` nothing can be kept. Remembers nothing between calls.
Source: active partial rollouts (APRIL), and Kimi; it launches twice as many groups as a step
trains on, here `step.reserve` and `learner.max_staleness`.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.plugins.actions import AnyAction, Park
from pipeline.plugins.interfaces import Barrier, SelectorEvent, Stateless, Wants
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize, may_wait
from pipeline.plugins.views import GroupView


@register("selector", "april")
class April(Stateless):
    wants = Wants()

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not group.unended:
            members = [member for member in group.ended if not member.reward_failed]
            yield finalize(members, "all that were sampled")
        elif isinstance(event, Barrier) and may_wait(group):
            ids = tuple(member.id for member in group.unended if member.state != "parked")
            if ids:
                why = "the step has its groups; to be continued in the next"
                yield Park(ids=ids, until="published", why=why, kind="partial")
