"""Advantage `apriel`: as `grpo`, with an overlong penalty that grows with the pass rate.

DAPO's ramp, 0 where the last tokens before the limit begin and -1 at the limit, is multiplied by
p^gamma for right answers, p the share of right answers in the group, and by `failed` for wrong
ones: on an easy prompt a long answer is waste, on a hard one it may be what it takes. A response
that was cut at its limit has all of it.
Source: Apriel-Reasoner, arXiv 2604.02007, and ServiceNow's PipelineRL; the published gamma was not
found, 1 is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import (
    CorrectOptions,
    less_mean,
    overlong_penalty,
    right,
    shape,
)
from pipeline.plugins.ranges import NonNegativeFloat, NonNegativeInt
from pipeline.plugins.registry import register
from pipeline.plugins.views import Outcome

_SHARE = 0.25  # of the limit: 4096 of 16384 tokens, as published


class AprielOptions(CorrectOptions, frozen=True, kw_only=True):
    """Options of the `apriel` advantage."""

    overlong_tokens: NonNegativeInt = 0
    """Last tokens before the limit in which the penalty grows; 0: the last quarter of the limit,
    as published."""
    gamma: NonNegativeFloat = 1.0
    """Power of the pass rate by which the penalty of right answers is multiplied."""
    failed: NonNegativeFloat = 1.0
    """Factor of the penalty of wrong answers."""


@register("advantage", "apriel")
class Apriel:
    Options = AprielOptions

    def __init__(self, options: AprielOptions | None = None) -> None:
        self._options = options or AprielOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        passed = right(members, self._options)
        pass_rate = float(passed.mean()) if members else 0.0
        penalties = [
            self._penalty(member, pass_rate, passed=bool(ok))
            for member, ok in zip(members, passed, strict=True)
        ]
        shaped = shape(members, self._options, penalties=penalties)
        if isinstance(shaped, NoSignal):
            return shaped
        values = less_mean(shaped.rewards, self._options)
        return shaped.advantages(values, why=f"{pass_rate:.2f} right")

    def _penalty(self, member: Outcome, pass_rate: float, *, passed: bool) -> float:
        zone = self._options.overlong_tokens or _SHARE * member.max_tokens
        ramp = overlong_penalty(member.tokens, member.max_tokens, zone)
        if member.truncated and not member.stopped:
            return ramp
        return ramp * (pass_rate**self._options.gamma if passed else self._options.failed)
