"""Selector `quickest`: train on the first to finish, wait a little for spare ones.

A group ends when M + spare candidates have finished, or when nothing runs any
more; the first M to finish are trained on. The teaching example of
docs/selectors.md, packaged.
"""

from __future__ import annotations

from collections.abc import Iterable

from darts.plugins import (
    AnyAction,
    Barrier,
    Drop,
    Finalize,
    GroupView,
    NonNegativeInt,
    Options,
    SelectorEvent,
    Wants,
)


class QuickestOptions(Options, frozen=True, kw_only=True):
    """Options of the `quickest` selector."""

    spare: NonNegativeInt = 0
    """Candidates that must have finished beyond M before the group ends."""


class Quickest:
    Options = QuickestOptions
    wants = Wants()

    def __init__(self, options: QuickestOptions | None = None) -> None:
        self._options = options or QuickestOptions()

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        ended = [member for member in group.ended if not member.reward_failed]
        closing = isinstance(event, Barrier) or not group.unended
        if len(ended) < group.size + self._options.spare and not closing:
            return
        chosen = ended[: group.size]
        if len(chosen) >= 2:
            ids = tuple(member.id for member in chosen)
            yield Finalize(ids=ids, why=f"the {len(ids)} quickest of {len(ended)}")
        elif not group.unended:
            yield Drop(why=f"only {len(chosen)} ended; an advantage needs two")
