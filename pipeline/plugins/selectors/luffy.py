"""Selector `luffy`: the data's solution is one more response of every group.

Turns a group whose members have all ended into one `Include` of the solution, where the data has
one for its prompt, and into the choice of all. What it has over the mean of the group is its
advantage, as of any member: large where the policy fails, none where it succeeds by itself.
Remembers nothing between calls.
Source: LUFFY, arXiv 2504.14945: one response of a stronger model beside seven of the policy, one
mean over all. Its policy shaping is `learner.policy_shaping`. Ours: it is scored by the run's
reward, and added to the M that are sampled.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.plugins.actions import AnyAction, Include
from pipeline.plugins.interfaces import SelectorEvent, Stateless, Wants
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize
from pipeline.plugins.views import GroupView


@register("selector", "luffy")
class Luffy(Stateless):
    wants = Wants(solution=True)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if group.unended:
            return
        if "solution" in group.foreign:
            yield Include("solution", why="beside the policy's own", kind="solution")
            return
        members = [member for member in group.ended if not member.reward_failed]
        yield finalize(members, "all that ended")
