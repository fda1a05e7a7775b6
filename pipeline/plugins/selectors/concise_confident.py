"""Selector `concise_confident`: short candidates that the model was sure of, and depth.

A finished candidate *passes* if its confidence is not below the `quantile` of the
last 512 finished members of all prompts; before 64 of them there is no gate.
With `depth: step` a group is enough at M finished; when the step closes, the gate
orders the short end and the longest finished ones are added, so the gate costs no
time. With `depth: none` a group ends when M pass, or when M + slack have finished.
With `depth: stop` it ends at M finished, and where most of these are right the longest
that still run are stopped and take the place of the last: truncated, so most rewards
call them wrong, and the verbose are trained on without being waited for.
Truncated candidates only fill up otherwise. Remembers nothing between calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from msgspec import Meta

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction, Enough, Stop
from pipeline.plugins.interfaces import Barrier, SelectorEvent, Wants
from pipeline.plugins.ranges import NonNegativeInt
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import (
    both_ends,
    filled_to_size,
    finalize,
    longest_first,
    shortest_first,
    usable,
)
from pipeline.plugins.views import GroupView, MemberView


class ConciseConfidentOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `concise_confident` selector."""

    longest: NonNegativeInt = 1
    """Trajectories taken from the long end, with `depth: step` and `stop`; the other
    size - longest are short and confident."""
    depth: Literal["step", "stop", "none"] = "step"
    """`step`: long candidates may continue until the step closes, and the longest finished
    are trained on; `stop`: at once, and the longest still running are cut and trained on
    where most of the short ones are known to be right; `none`: only the short end, at once."""
    quantile: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    """Share of recent candidates whose confidence fails the gate, from 0 to below 1."""
    slack: NonNegativeInt = 1
    """With `depth: none`: candidates finished beyond M after which the gate waits no more."""

    def problems(self, group_size: int) -> Iterator[str]:
        if self.longest >= group_size:
            rule = f"at most {group_size - 1}"
            yield f"longest is {self.longest}, but group.size is {group_size}: {rule}"


@register("selector", "concise_confident")
class ConciseConfident:
    Options = ConciseConfidentOptions
    wants = Wants()

    def __init__(self, options: ConciseConfidentOptions | None = None) -> None:
        self._options = options or ConciseConfidentOptions()

    def waits_for(self, candidates: int, size: int) -> int:
        """Return M; with `depth: none` M and the slack, the most that the gate waits for."""
        slack = self._options.slack if self._options.depth == "none" else 0
        return min(size + slack, candidates)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        finished = usable(group)
        if len(finished) < group.size:
            if not group.unended:
                yield finalize(filled_to_size(group), "all that ended")
            return
        gate = group.statistics.confidence_quantile(self._options.quantile)
        passing = [member for member in finished if gate is None or member.confidence >= gate]
        if self._options.depth == "step":
            yield self._with_depth(group, event, finished, passing)
            return
        if self._options.depth == "stop":
            yield from self._with_stop(group, finished, passing)
            return
        waited = len(finished) >= group.size + self._options.slack
        closing = isinstance(event, Barrier) or not group.unended
        if len(passing) >= group.size or waited or closing:
            chosen = _confident_then_short(finished, passing)[: group.size]
            kept = min(len(passing), group.size)
            yield finalize(chosen, f"{kept} of {group.size} pass the gate, then the shortest")

    def _with_depth(
        self,
        group: GroupView,
        event: SelectorEvent,
        finished: list[MemberView],
        passing: list[MemberView],
    ) -> AnyAction:
        if group.unended and not isinstance(event, Barrier):
            return Enough(why=f"{group.size} have finished; the longest may go on")
        ordered = _confident_then_short(finished, passing)
        chosen = both_ends(ordered, group.size, self._options.longest)
        long = min(self._options.longest, group.size - 1)
        return finalize(
            chosen, f"{group.size - long} short ({len(passing)} pass the gate) and {long} longest"
        )

    def _with_stop(
        self, group: GroupView, finished: list[MemberView], passing: list[MemberView]
    ) -> Iterator[AnyAction]:
        chosen = _confident_then_short(finished, passing)[: group.size]
        right = sum(member.reward == 1.0 for member in chosen)  # not known yet: not right
        cut: list[MemberView] = []
        if 2 * right > group.size:
            # shorter than every chosen one: just begun (top-up, a late slot), not verbose
            verbose = [m for m in group.unended if m.tokens > min(c.tokens for c in chosen)]
            cut = longest_first(verbose)[: min(self._options.longest, group.size - 1)]
        short = chosen[: group.size - len(cut)]
        if cut:
            why = f"{right} of {group.size} short ones are right"
            yield Stop(ids=tuple(member.id for member in cut), why=why)
        yield finalize([*short, *cut], f"{len(short)} short and {len(cut)} cut while running")


def _confident_then_short(
    finished: list[MemberView], passing: list[MemberView]
) -> list[MemberView]:
    failing = [member for member in finished if member not in passing]
    return shortest_first(passing) + shortest_first(failing)
