"""Selector `dual_end`: train on the K shortest and the L longest finished, K + L = M.

With `long_wait: group` every candidate is waited for, as published. With
`long_wait: step` the group is enough at M finished and continues until the step
closes: the time of `first_m`, nearly all of the depth. With `prune_at` a group that
was given many candidates waits for no long one. Truncated ones are taken only when
fewer than M others exist; ties go by arrival. Remembers nothing.
Source: dual-end selection and tail pruning, arXiv 2605.30859.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction, Enough
from pipeline.plugins.interfaces import Barrier, SelectorEvent, Wants
from pipeline.plugins.ranges import NonNegativeInt, zero_or
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import (
    both_ends,
    filled_to_size,
    finalize,
    shortest_first,
    usable,
)
from pipeline.plugins.views import GroupView


class DualEndOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `dual_end` selector."""

    longest: NonNegativeInt = 1
    """Trajectories taken from the long end; L in the paper. The other size - L are the shortest."""
    long_wait: Literal["group", "step"] = "step"
    """How long to wait for the long end: `group`, until every candidate has ended, as published;
    `step`, until the step closes."""
    prune_at: Annotated[float, zero_or(1)] = 0.0
    """A group that was given prune_at x M candidates or more keeps the short end alone: it ends
    when its first M have finished. 2.0: as published; 0: never."""

    def problems(self, group_size: int) -> Iterator[str]:
        if self.longest >= group_size:
            rule = f"at most {group_size - 1}"
            yield f"longest is {self.longest}, but group.size is {group_size}: {rule}"


@register("selector", "dual_end")
class DualEnd:
    Options = DualEndOptions
    wants = Wants()

    def __init__(self, options: DualEndOptions | None = None) -> None:
        self._options = options or DualEndOptions()

    def waits_for(self, candidates: int, size: int) -> int:
        """Return M where the group is pruned or goes on to the barrier, else all."""
        waits_for_all = self._options.long_wait == "group" and not self._prunes(candidates, size)
        return candidates if waits_for_all else min(size, candidates)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        members = shortest_first(usable(group))
        enough = len(members) >= group.size
        if not group.unended and not enough:
            yield finalize(filled_to_size(group), "all that ended")
        elif enough and self._prunes(group.budget, group.size):
            why = f"{group.size} shortest: pruned at {group.budget} candidates"
            yield finalize(members[: group.size], why, kind="pruned")
        elif enough and (not group.unended or isinstance(event, Barrier)):
            chosen = both_ends(members, group.size, self._options.longest)
            long = min(self._options.longest, group.size - 1)
            by = "finished at the barrier" if group.unended else "of all"
            yield finalize(chosen, f"{group.size - long} shortest and {long} longest {by}")
        elif enough and self._options.long_wait == "step":
            yield Enough(why=f"{group.size} have finished; the longest may go on")

    def _prunes(self, candidates: int, size: int) -> bool:
        at = self._options.prune_at
        return at > 0 and candidates >= at * size
