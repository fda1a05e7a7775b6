"""Selector `scope`: mend a failed response from the end of its last good step.

Turns the step scores of a wrong answer into a `Sample` that begins with its good steps, where
fewer than half of the group are right. If the mended response is right it takes the place of the
failed one, else it is left out; at most one in a group. A reward that judges steps gives them as
parts: `step_1`, `step_2`, ... the scores, `end_1`, `end_2`, ... the response tokens up to the end
of each. Remembers nothing between calls.
Source: SCOPE, arXiv 2602.24110, in our reading of its abstract: the first step below `threshold`
is the error; which failed member is mended (the one with the longest good beginning) is ours. It is
continued by the policy itself, not by a teacher.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction, Sample
from pipeline.plugins.interfaces import SelectorEvent, Wants
from pipeline.plugins.ranges import PositiveFloat, PositiveShare
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize, reward_of, scored, settled
from pipeline.plugins.views import GroupView


class ScopeOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `scope` selector."""

    threshold: PositiveShare = 0.5
    """Score of a step below which it is an error."""
    right: PositiveFloat = 1.0
    """Reward from which on a response is right."""


def first_error(scores: Sequence[float], threshold: float) -> int:
    """Number of the first step, from 1, that is an error; 0: none is."""
    return next((k for k, score in enumerate(scores, 1) if score < threshold), 0)


def good_tokens(parts: Mapping[str, float], threshold: float) -> int:
    """Response tokens before the first error; 0: there is none, or nothing good before it."""
    scores: list[float] = []
    while (score := parts.get(f"step_{len(scores) + 1}")) is not None:
        scores.append(score)
    error = first_error(scores, threshold)
    return int(parts.get(f"end_{error - 1}", 0)) if error > 1 else 0


@register("selector", "scope")
class Scope:
    Options = ScopeOptions
    wants = Wants(reward=True, parts=("step_1",))

    def __init__(self, options: ScopeOptions | None = None) -> None:
        self._options = options or ScopeOptions()

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not settled(group):
            return
        threshold, right = self._options.threshold, self._options.right
        mended = next((m for m in group.members if m.fork >= 0), None)
        members = [member for member in scored(group) if member.fork < 0]
        if mended is None:
            failed = max(
                (m for m in members if reward_of(m) < right),
                key=lambda m: good_tokens(m.parts, threshold),
                default=None,
            )
            wrong = sum(reward_of(m) < right for m in members)
            at = good_tokens(failed.parts, threshold) if failed else 0
            if failed and 0 < at < failed.tokens and 2 * wrong > len(members):
                why = f"{wrong} of {len(members)} are wrong; {at} tokens of {failed.id} are good"
                yield Sample(n=1, fork=(failed.id, at), why=why, kind="mend")
                return
            yield finalize(members, "all that were sampled")
        elif reward_of(mended) >= right:
            chosen = [m for m in scored(group) if m.id != mended.fork]
            yield finalize(chosen, f"{mended.id} mends {mended.fork}", kind="mended")
        else:
            yield finalize(members, f"{mended.id} is wrong too", kind="not_mended")
