"""Batch rule `oldest_first`: groups opened earlier are waited for, so that none is left behind.

Generation is `alpha` steps ahead. The oldest groups that step g admits were opened in step
s0 = g - ceil(alpha); from these as many as the fraction of alpha says (all, if it is whole), and
the step waits for them; then those of later steps in order, as many as are missing. Where a step's
groups have not finished in that number, the search stops and waits. So a batch is never made of the
faster ones: it has no bias by length. Groups opened before s0 count as of s0.

Groups are taken as soon as it is certain that they belong to the batch, which changes no batch and
lets the learner begin; what would be too old for the next step is taken beside it. On-policy,
groups beyond the number needed go back.
Source: RollArt, and the released program of ROLL. Remembers nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pipeline.plugins import interfaces
from pipeline.plugins.actions import BatchAction, Close, Leave, Take
from pipeline.plugins.ranges import NonNegativeFloat
from pipeline.plugins.registry import register
from pipeline.plugins.views import BatchView, GroupFacts

_ORDER = ("accumulated", "sent", "taken", "ready", "chosen", "enough", "open")
"""States of groups that may still come, those first that are surest to."""


class OldestFirstOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `oldest_first` batch rule."""

    alpha: NonNegativeFloat = 0.0
    """Steps that generation is ahead, 1.5 for a step and a half; 0: as many as it may be."""


@register("batch", "oldest_first")
class OldestFirst:
    Options = OldestFirstOptions

    def __init__(self, options: OldestFirstOptions | None = None) -> None:
        self._options = options or OldestFirstOptions()

    def decide(self, view: BatchView) -> Iterable[BatchAction]:
        batch, complete = self._batch(view)
        ready = set(view.ready)
        taking = [group for group in batch if group in ready]
        taking += [group for group in view.due if group not in taking]
        if taking:
            yield Take(groups=tuple(taking))
        if complete and not view.closing:
            yield Close()
        surplus = tuple(group for group in view.ready if group not in taking)
        if surplus and not view.ahead and view.taken + len(taking) >= view.need:
            yield Leave(groups=surplus, why="beyond the number needed", kind="surplus")

    def _batch(self, view: BatchView) -> tuple[list[int], bool]:
        """Groups that are certain to be in the batch, and whether they are all of it."""
        alpha = self._options.alpha or view.ahead
        oldest = view.step - math.ceil(alpha)
        started: dict[int, list[GroupFacts]] = {}
        for facts in map(view.facts, view.groups()):
            # the dead and the held are not counted as coming; the asleep come in a later step
            if facts.state in _ORDER and not facts.held and not facts.asleep:
                started.setdefault(max(facts.opened, oldest), []).append(facts)
        batch: list[int] = []
        missing = view.need
        for step in sorted(started):
            groups = sorted(started[step], key=lambda facts: (_ORDER.index(facts.state), facts.id))
            wanted = min(missing, len(groups))
            if step == oldest and alpha % 1:
                wanted = min(wanted, round(view.need * (alpha % 1)))
            come = [facts.id for facts in groups[:wanted] if facts.state != "open"]
            batch += come
            missing -= len(come)
            if len(come) < wanted:
                return batch, False
        return batch, missing <= 0
