"""Budget `xrpo`: rounds of candidates, each to the prompts whose mean reward becomes surer by it.

Turns a plan into a base round, fewer than M for each, and the rewards of held groups into further
rounds until M have been sampled on average. A candidate goes to the group of the highest priority:
by how much one more reward narrows the confidence interval of its mean, and a bonus for groups of
few. A round is given when all open groups are held (the selector is `xrpo` too).
Source: XRPO, arXiv 2510.06672, as it is described and re-implemented by others. Ours: alpha, the
bonus, how many rounds, and that the bonus counts the rollouts of the open groups.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

from msgspec import Meta

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Allocation
from pipeline.plugins.budgets._top_up import PerMember
from pipeline.plugins.ranges import NonNegativeFloat, PositiveInt, PositiveShare
from pipeline.plugins.registry import register
from pipeline.plugins.views import BudgetView, OpenView, PromptView


class XrpoOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `xrpo` budget."""

    base: PositiveShare = 0.5
    """Share of M that every prompt gets in the base round; two at least."""
    rounds: PositiveInt = 2
    """Rounds in which the others are given."""
    alpha: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    """The confidence interval is of 1 - alpha, above 0 to below 1."""
    bonus: NonNegativeFloat = 0.1
    """Weight of the bonus for groups of few; lambda."""
    most: PerMember = 2.0
    """Candidates of a group at most, for each of M."""


@lru_cache(maxsize=1024)
def t_quantile(alpha: float, freedom: int) -> float:
    """The t with P(|T| > t) = alpha, of Student's distribution.

    By bisection of the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        if _inside(angle, freedom) < 1 - alpha:
            low = angle
        else:
            high = angle
    return math.sqrt(freedom) * math.tan(low)


def _inside(angle: float, freedom: int) -> float:
    """P(|T| <= t) for t = sqrt(freedom) tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= k * cosine**2 / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def half_width(spread: float, count: int, alpha: float) -> float:
    """Of the confidence interval of a mean: t s / sqrt(n)."""
    return t_quantile(alpha, count - 1) * spread / math.sqrt(count)


def priority(spread: float, count: int, rollouts: int, options: XrpoOptions) -> float:
    """What one more candidate is worth to a group.

    Args:
        spread: deviation of its rewards (of the sample).
        count: its candidates; below two nothing is known of the spread, and it comes first.
        rollouts: of all groups so far.
    """
    if count < 2:
        return math.inf
    alpha = options.alpha
    gain = half_width(spread, count, alpha) - half_width(spread, count + 1, alpha)
    return gain + options.bonus * math.sqrt(math.log(1 + rollouts) / count)


@register("budget", "xrpo")
class Xrpo:
    Options = XrpoOptions
    on_rewards = True

    def __init__(self, options: XrpoOptions | None = None) -> None:
        self._options = options or XrpoOptions()

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        base = max(2, math.floor(self._options.base * view.size + 0.5))
        allocation = Allocation(base, view.max_tokens, f"base round of {base}")
        return [allocation] * len(prompts)

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        if not groups or not all(group.held for group in groups):
            return ()
        options = self._options
        whole = sum(group.size for group in groups)
        rollouts = sum(group.sampled for group in groups)
        share = math.ceil((1 - options.base) * whole / options.rounds)
        left = min(whole - rollouts, share)
        heap: list[tuple[float, int, int]] = []  # (-priority, group, candidates given)
        spreads: dict[int, tuple[float, int, int]] = {}  # group -> (spread, rewards, room)
        for group in groups:
            known = len(group.rewards)
            spread = statistics.stdev(group.rewards) if known > 1 else 0.0
            room = math.floor(options.most * group.size + 0.5) - group.sampled
            spreads[group.id] = (spread, known, room)
            if room > 0:
                heap.append((-priority(spread, known, rollouts, options), group.id, 0))
        heapq.heapify(heap)
        given: dict[int, int] = {}
        while heap and left > 0:
            _, group_id, count = heapq.heappop(heap)
            given[group_id], left = count + 1, left - 1
            spread, known, room = spreads[group_id]
            if count + 1 < room:
                worth = priority(spread, known + count + 1, rollouts, options)
                heapq.heappush(heap, (-worth, group_id, count + 1))
        return sorted(given.items())
