"""Tells from a probe whether an engine serves a new version of the weights or the one before.

Compares the engine's own change between two versions with the learner's. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

DOUBT = 5.0
"""Standard deviations of noise that count as doubt of `moved`."""
EXCESS = 8.0
"""How many times its predicted size a difference must have to be more than noise. At most 2.2 was
measured without a fault, over learning rates of 1e-6 to 1e-3 in float32 and bfloat16 (column noise
of `scripts/bench/stale_weights.py`; docs/engines.md)."""
MISSING = 0.01
"""Part of the learner's change that may be missing from a proved one."""
_LEAST_NOISE = 1e-6  # nats: logprobs are float32, and of some probes all gaps are 0


class Answer(StrEnum):
    """What a probe says about the weights that an engine serves."""

    PROVED = "proved"
    STALE = "stale"
    UNSURE = "cannot tell"


@dataclass(frozen=True, slots=True)
class Probed:
    """One version's logprobs of the probe, at all temperatures; nats, NaN: not answered."""

    version: int
    expected: Sequence[float]  # the learner's
    found: Sequence[float]  # the engine's


@dataclass(frozen=True, slots=True)
class Change:
    """How far the engine went along with the learner."""

    answer: Answer
    moved: float = math.nan  # 0: the engine serves the version before, 1: the new one
    doubt: float = math.inf  # of `moved`
    missing: float = math.nan  # 0: the engine's change is the learner's
    arrived: bool = False
    """It is nearer to the new version than to the one before, beyond doubt; a part of the change
    that is smaller than the noise may be missing."""


def judge_change(before: Probed | None, now: Probed) -> Change:
    """Compare an engine's change of logprobs since `before` with the learner's.

    With c = the learner's change over the positions that both answered, d = the engine's, and r =
    d - c, in nats:

        moved   = <d, c> / <c, c>            (1 with the new weights, 0 with the old ones)
        missing = |r| / |c|                  (0 with the new weights, 1 with the old ones)
        noise   = sqrt(2) * s                (standard deviation of one position of r)
        doubt   = 5 * noise / |c|            (five standard deviations of `moved`)

    s is the root mean square of the gap before, engine minus learner under the same weights. What
    two implementations always compute differently is in s but cancels in r, so `noise` is rather
    too large. `moved` is the projection on the learner's change: it adds up small changes at many
    positions, and above 1/2 the engine is nearer to the new version than to the one before.

    stale: `moved` + `doubt` < 1/2, or |r| > 8 * noise * sqrt(n) with n positions: more than noise
        is missing, as by one layer that was not loaded.
    proved: not stale, and `missing` <= 1/100.
    cannot tell: neither. Such are the first version, a change below the engine's rounding, and
        one in whose noise a layer's part could hide.

    >>> old = Probed(0, [-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0])
    >>> new = Probed(1, [-1.1, -1.9, -3.2], [-1.1, -1.9, -3.2])
    >>> stale = Probed(1, [-1.1, -1.9, -3.2], [-1.0, -2.0, -3.0])
    >>> [judge_change(*pair).answer.value for pair in ((None, old), (old, new), (old, stale))]
    ['cannot tell', 'proved', 'stale']
    """
    if before is None:
        return Change(Answer.UNSURE)
    learner: list[float] = []
    engine: list[float] = []
    gaps: list[float] = []
    for p0, e0, p1, e1 in zip(before.expected, before.found, now.expected, now.found, strict=True):
        if all(map(math.isfinite, (p0, e0, p1, e1))):
            learner.append(p1 - p0)
            engine.append(e1 - e0)
            gaps.append(e0 - p0)
    size = math.hypot(*learner)
    if not size:
        return Change(Answer.UNSURE)
    noise = math.sqrt(2) * max(math.hypot(*gaps) / math.sqrt(len(gaps)), _LEAST_NOISE)
    moved = _dot(engine, learner) / size**2
    rest = math.hypot(*(d - c for d, c in zip(engine, learner, strict=True)))
    doubt, missing = DOUBT * noise / size, rest / size
    if moved + doubt < 0.5 or rest > EXCESS * noise * math.sqrt(len(gaps)):
        answer = Answer.STALE
    else:
        answer = Answer.PROVED if missing <= MISSING else Answer.UNSURE
    return Change(answer, moved, doubt, missing, answer != Answer.STALE and moved - doubt > 0.5)


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))
