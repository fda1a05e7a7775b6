"""Selector `seele`: rounds of candidates, each with as much of the solution as makes half right.

Turns the accuracy at each share of the solution that has been shown into the share of the next
round: the one at which a fitted curve is at `target`. What is shown is prompt and never trained
on. The first round comes from the budget (`seele` too), without a hint, or with half of the
solution where nothing was solved. Once M have been sampled all are trained on. Remembers nothing.
Source: SEELE, arXiv 2509.06923: three-parameter logistic curve, target 1/2. Ours: the number of
rounds, and least squares over a grid of the three parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Annotated

from msgspec import Meta

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction, Sample
from pipeline.plugins.interfaces import SelectorEvent, Wants
from pipeline.plugins.ranges import NonEmpty, PositiveInt
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize, mean_reward, scored, settled
from pipeline.plugins.views import GroupView, MemberView

_FLOORS = (0.0, 0.1)  # c below
_SLOPES = (4.0, 8.0, 16.0)  # k
_MIDDLES = tuple(step / 20 for step in range(21))  # b
_FIRST_HINT = 0.5  # where nothing was solved without one


class SeeleOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `seele` selector."""

    solution: NonEmpty = "solution"
    """Column of the data with the solution."""
    rounds: PositiveInt = 4
    """Rounds in which a group's M candidates are sampled; `budget.seele.rounds` says the same."""
    target: Annotated[float, Meta(gt=0.1, lt=1)] = 0.5
    """Accuracy that a round is to have, above 0.1 to below 1."""


def accuracy_at(share: float, floor: float, slope: float, middle: float) -> float:
    """Accuracy with this share of the solution: c + (1 - c) / (1 + exp(-k (x - b)))."""
    return floor + (1 - floor) / (1 + math.exp(-slope * (share - middle)))


def share_for(target: float, floor: float, slope: float, middle: float) -> float:
    """Share of the solution at which the curve is at `target`, from 0 to 1."""
    share = middle + math.log((target - floor) / (1 - target)) / slope
    return min(max(share, 0.0), 1.0)


def fitted(seen: Sequence[tuple[float, float, int]]) -> tuple[float, float, float]:
    """Floor, slope and middle of the curve of least squares; of equal ones the first.

    Args:
        seen: (share of the solution, accuracy, candidates that it is the mean of).
    """

    def error(curve: tuple[float, float, float]) -> float:
        return math.fsum(n * (accuracy_at(x, *curve) - y) ** 2 for x, y, n in seen)

    return min(itertools.product(_FLOORS, _SLOPES, _MIDDLES), key=error)


@register("selector", "seele")
class Seele:
    Options = SeeleOptions
    wants = Wants(reward=True)

    def __init__(self, options: SeeleOptions | None = None) -> None:
        self._options = options or SeeleOptions()

    @property
    def variants(self) -> tuple[str, ...]:
        """Columns that it names, looked up before a run."""
        return (self._options.solution,)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not settled(group):
            return
        members, options = scored(group), self._options
        left = group.size - group.budget
        if left <= 0 or not members:
            yield finalize(members, f"{group.budget} candidates in rounds")
            return
        share = self._next_share(members)
        variant = f"{options.solution}:{share:.2f}" if round(share, 2) else ""
        why = f"mean reward {mean_reward(members):.2f} of {len(members)}: {share:.2f} is shown"
        n = min(left, math.ceil(group.size / options.rounds))
        yield Sample(n=n, variant=variant, why=why, kind="hinted" if variant else "bare")

    def _next_share(self, members: Sequence[MemberView]) -> float:
        prefix, by_share = f"{self._options.solution}:", dict[float, list[MemberView]]()
        for member in members:
            hinted = member.variant.startswith(prefix)
            share = float(member.variant.removeprefix(prefix)) if hinted else 0.0
            by_share.setdefault(share, []).append(member)
        if set(by_share) == {0.0} and mean_reward(members) <= 0:
            return _FIRST_HINT
        seen = [(share, mean_reward(of), len(of)) for share, of in sorted(by_share.items())]
        return share_for(self._options.target, *fitted(seen))
