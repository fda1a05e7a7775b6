"""Selector `sorted_rl`: groups are trained on as they are complete, and unfinished responses are
carried over a publish, or begun again.

Turns a publish, or the barrier before it, into restarts. `cached`: an unfinished response keeps
its tokens and continues under the new weights; members with a token that would be too old after
the publish are sampled anew, else their whole group would be lost (`learner.max_staleness` is the
bound). `strict`: every unfinished response is sampled anew under the new weights, so that none
holds tokens of two versions; its tokens are waste. Remembers nothing between calls.
Source: SortedRL, arXiv 2603.23414, of which the rule in detail is our reading: a large load of
prompts is `step.prompts` x (`learner.max_staleness` + 1), and a batch rule that takes groups in
the order in which they are complete (`sorted`) makes the curriculum by length. Ours: what has ended
is sampled anew too when it would be too old, since a group is trained on whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Abort, AnyAction, Sample
from pipeline.plugins.interfaces import Barrier, SelectorEvent, Wants, WeightsPublished
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize
from pipeline.plugins.views import GroupView, MemberView


class SortedRlOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `sorted_rl` selector."""

    mode: Literal["cached", "strict"] = "cached"
    """What becomes of unfinished responses when weights are published: `cached`, they continue
    with their tokens; `strict`, they begin again."""


@register("selector", "sorted_rl")
class SortedRl:
    Options = SortedRlOptions

    def __init__(self, options: SortedRlOptions | None = None) -> None:
        self._options = options or SortedRlOptions()
        self.wants = Wants(published=self._options.mode == "strict")

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not group.unended:
            members = [member for member in group.ended if not member.reward_failed]
            yield finalize(members, "all that were sampled")
        elif isinstance(event, Barrier) and group.due and group.max_staleness:
            limit = group.version - group.max_staleness
            old = [m for m in group.members if m.versions and m.versions[0] <= limit]
            yield from _again(old, f"version {limit} would be too old after the publish")
        elif isinstance(event, WeightsPublished) and self._options.mode == "strict":
            begun = [member for member in group.unended if member.tokens]
            yield from _again(begun, f"version {group.version} is served")


def _again(members: Sequence[MemberView], why: str) -> Iterable[AnyAction]:
    if members:
        yield Abort(ids=tuple(member.id for member in members), why=why, kind="restarted")
        yield Sample(n=len(members), why=why, kind="restarted")
