"""Selector `arrol`: prune candidates half-way, so that those left are half right and half wrong.

Turns a prediction of each candidate's reward, once all of them hold `checkpoint` tokens or have
ended, into an `Abort` of all but M: one at a time, always the one without which the mean of the
predictions is nearest to `target`. Those left are all trained on. What has been scored predicts
itself; else the prediction is the newest scalar of the engine (`MemberView.score`, a probability),
where it gives one, or follows from the candidate's confidence. Remembers nothing between calls.
Source: ARRoL, arXiv 2603.24840: pruning by a small head trained on the rewards seen, target one
half. Ours: how those left are chosen, and the stand-in for the head, confidence in place of a
probability, calibrated so that over the run's recent responses its mean is their mean reward.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Abort, AnyAction
from pipeline.plugins.interfaces import SelectorEvent, Wants
from pipeline.plugins.ranges import PositiveInt, Share
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import finalize
from pipeline.plugins.views import ENDED, GroupView, MemberView, Statistics

_LEVELS = tuple(step / 20 for step in range(1, 20))


class ArrolOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `arrol` selector."""

    checkpoint: PositiveInt = 512
    """Tokens that every candidate holds, or has ended before, when the group is pruned."""
    target: Share = 0.5
    """Mean of the predicted rewards that pruning aims at."""


def survivors(
    predicted: Sequence[float], ended: Sequence[bool], keep: int, target: float
) -> list[int]:
    """Positions of the `keep` that are left, in order.

    One goes at a time: the one without which the mean is nearest to `target`; of equal ones first
    those that have not ended, then the last.
    """
    left = list(range(len(predicted)))
    while len(left) > keep:
        total = sum(predicted[i] for i in left)
        others = len(left) - 1

        def worth(i: int, total: float = total, others: int = others) -> tuple[float, bool, int]:
            return round(abs((total - predicted[i]) / others - target), 9), ended[i], -i

        left.remove(min(left, key=worth))
    return left


def calibrated(confidence: float, statistics: Statistics) -> float | None:
    """Probability of a reward of 1, linear in the rank of this confidence among recent ones.

    Its mean over those is their pass rate. None before there are enough of them.
    """
    rate = statistics.pass_rate()
    levels = [statistics.confidence_quantile(level) for level in _LEVELS]
    known = [level for level in levels if level is not None]
    if rate is None or not known:
        return None
    rate = min(max(rate, 0.0), 1.0)
    rank = sum(confidence >= level for level in known) / len(known)
    return rate + (2 * rank - 1) * min(rate, 1 - rate)


@register("selector", "arrol")
class Arrol:
    Options = ArrolOptions

    def __init__(self, options: ArrolOptions | None = None) -> None:
        self._options = options or ArrolOptions()
        self.wants = Wants(reward=True, every=self._options.checkpoint)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        members = [member for member in group.members if not member.reward_failed]
        ended = [member.state in ENDED for member in members]
        why = "all that were sampled"
        if len(members) > group.size:
            found = [self._predicted(group, member) for member in members]
            predicted = [p for p in found if p is not None]
            if len(predicted) == len(members):
                left = survivors(predicted, ended, group.size, self._options.target)
                mean = sum(predicted[i] for i in left) / len(left)
                why = f"predicted mean {mean:.2f} of {len(left)} left"
                if not all(ended):
                    gone = tuple(m.id for i, m in enumerate(members) if i not in left)
                    yield Abort(ids=gone, why=why, kind="pruned")
                members, ended = [members[i] for i in left], [ended[i] for i in left]
            elif not group.unended and any(m.reward is None for m in members):
                return  # their rewards are on their way
        if all(ended):
            yield finalize(members, why)

    def _predicted(self, group: GroupView, member: MemberView) -> float | None:
        """The reward expected of it; None if it is too early to say."""
        if member.reward is not None:
            return member.reward
        if member.state in ENDED or member.tokens < self._options.checkpoint:
            return None
        if member.score is not None:
            return member.score
        return calibrated(member.confidence, group.statistics)
