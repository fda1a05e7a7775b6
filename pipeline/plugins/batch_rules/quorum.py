"""Batch rule `quorum`: as `fifo`, and the last groups of a step need fewer members.

Once `share` of the groups needed is in (taken, ready, chosen or enough), open groups
need only reach `size`: a prompt with a long tail holds no other up, for a few
trajectories fewer. Once a step, which the view says: remembers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from msgspec import Meta

from pipeline.plugins import interfaces
from pipeline.plugins.actions import BatchAction, Relax
from pipeline.plugins.batch_rules.fifo import Fifo
from pipeline.plugins.ranges import PositiveShare
from pipeline.plugins.registry import register
from pipeline.plugins.views import BatchView


class QuorumOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `quorum` batch rule."""

    share: PositiveShare = 0.9
    """Share of the step's groups that must be in before the others close with fewer members,
    above 0 and at most 1 (1: never fewer)."""
    size: Annotated[int, Meta(ge=2)] = 6
    """Members that an open group needs from then on, from 2 to M."""

    def problems(self, group_size: int) -> Iterator[str]:
        if self.size > group_size:
            rule = f"from 2 to {group_size}"
            yield f"size is {self.size}, but group.size is {group_size}: {rule}"


@register("batch", "quorum")
class Quorum:
    Options = QuorumOptions

    def __init__(self, options: QuorumOptions | None = None) -> None:
        self._options = options or QuorumOptions()
        self._fifo = Fifo()

    def decide(self, view: BatchView) -> Iterable[BatchAction]:
        yield from self._fifo.decide(view)
        coming = view.taken + len(view.ready) + view.chosen + view.enough
        # divided: 0.55 * 100 is above 55, 55 / 100 is 0.55 to the last bit
        met = coming < view.need and coming / view.need >= self._options.share
        if met and view.size > self._options.size:
            yield Relax(size=self._options.size)
