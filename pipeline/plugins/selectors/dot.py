"""Selector `dot`: where all others are right, stop the one that runs on far beyond them.

Turns the growth of a group's last running member into a `Stop` once it is longer than mean + k
deviations of the others, all of which have ended and are right. It stays in the group, truncated
and most likely wrong, so that its length is what the group learns from; an `Abort` would take that
away. Every other group is left alone, and trained on whole. Remembers nothing between calls.
Source: dynamic outlier truncation, arXiv 2601.03969. Exact: groups that are all right, mean + 3
deviations of the population. Ours: published, all have ended and what lies beyond is cut off; here
the last one is stopped while it runs, by the others' figures, with a deviation of at least a tenth
of their mean, or others of one length would allow it nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction, Stop
from pipeline.plugins.interfaces import SelectorEvent, Wants
from pipeline.plugins.ranges import PositiveFloat, PositiveInt, Share
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize
from pipeline.plugins.views import GroupView


class DotOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `dot` selector."""

    deviations: PositiveFloat = 3.0
    """Deviations above the mean length from which a response is an outlier; k above."""
    least_deviation: Share = 0.1
    """The deviation is taken to be at least this share of the mean."""
    right: PositiveFloat = 1.0
    """Reward from which on a response is right."""
    every: PositiveInt = 32
    """Tokens between two looks at a running member."""


def threshold(lengths: Sequence[int], deviations: float, least_deviation: float = 0.0) -> float:
    """Length, in tokens, beyond which a response is an outlier among these."""
    mean = math.fsum(lengths) / len(lengths)
    spread = math.sqrt(math.fsum((length - mean) ** 2 for length in lengths) / len(lengths))
    return mean + deviations * max(spread, least_deviation * mean)


@register("selector", "dot")
class Dot:
    Options = DotOptions

    def __init__(self, options: DotOptions | None = None) -> None:
        self._options = options or DotOptions()
        self.wants = Wants(reward=True, every=self._options.every)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        members = [member for member in group.ended if not member.reward_failed]
        if not group.unended:
            yield finalize(members, "all that were sampled")
            return
        options, [*others, last] = self._options, list(group.unended)
        if others or len(members) < 2:
            return
        if all(m.reward is not None and m.reward >= options.right for m in members):
            lengths = [member.tokens for member in members]
            limit = threshold(lengths, options.deviations, options.least_deviation)
            if last.tokens > limit:
                why = f"{last.tokens} tokens; the {len(members)} others are right by {limit:.0f}"
                yield Stop(ids=(last.id,), why=why, kind="outlier")
