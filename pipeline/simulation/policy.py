"""A policy of few numbers, moved by the policy gradient of what is trained on.

For each kind of prompt (verbose, deep) three numbers: `shift` and `scale` of the length
in deviations of its logarithm, and `skill`, added to the logit of being right. A response
has z ~ N(0, 1): its log length is middle + spread * (shift + exp(scale) * z), and it is
right with the sigmoid of right + skill + slope * (shift + exp(scale) * z): a shorter
response to a deep prompt is wrong more often, whatever made it short.

Training moves the numbers along the mean over the trajectories trained on of
advantage * d log probability, the estimator of REINFORCE with the advantages that the
coordinator computed and the selector's choice of trajectories: shaping is what follows.
Of a truncated response it is known that it is longer than what there is of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt."""

    deep: bool
    middle: float  # log of its median length, tokens
    spread: float  # deviation of the logarithm
    right: float  # logit of being right at the median length
    slope: float  # of that logit, per deviation of length


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """The learned change for one kind of prompt."""

    shift: float = 0.0
    scale: float = 0.0
    skill: float = 0.0


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """One trajectory trained on."""

    kind: Kind
    tokens: int
    truncated: bool
    reward: float
    advantage: float
    weight: float = 1.0


Versions = dict[int, tuple[Numbers, Numbers]]


class Policy:
    """Numbers by version; the last few are kept, for legs that began with an older one.

    Args:
        rate: step along the gradient; 0: training changes nothing (no shaping).
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.versions: Versions = {0: (Numbers(), Numbers())}

    def numbers(self, version: int, deep: bool) -> Numbers:
        known = self.versions.get(version)
        if known is None:
            known = self.versions[max(self.versions)]
        return known[deep]

    def respond(self, kind: Kind, z: float, version: int) -> tuple[int, float]:
        """(tokens, probability of being right) of the response with this z."""
        own = self.numbers(version, kind.deep)
        u = own.shift + math.exp(own.scale) * z
        tokens = max(1, round(math.exp(min(kind.middle + kind.spread * u, 25.0))))
        return tokens, _sigmoid(kind.right + own.skill + kind.slope * u)

    def learn(self, before: int, after: int, lessons: Iterable[Lesson]) -> None:
        """Version `after` is `before`, moved by these."""
        sums = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        whole = 0.0
        for lesson in lessons:
            whole += lesson.weight
            gain = lesson.weight * lesson.advantage
            if gain and self.rate:
                slopes = self._slopes(lesson, self.numbers(before, lesson.kind.deep))
                into = sums[lesson.kind.deep]
                for n, slope in enumerate(slopes):
                    into[n] += gain * slope
        step = self.rate / max(1.0, whole)
        moved = tuple(
            Numbers(
                shift=own.shift + step * by[0],
                scale=min(1.0, max(-2.0, own.scale + step * by[1])),
                skill=own.skill + step * by[2],
            )
            for own, by in ((self.numbers(before, bool(deep)), sums[deep]) for deep in (0, 1))
        )
        self.versions[after] = (moved[0], moved[1])
        for old in [v for v in self.versions if v < after - 8]:
            del self.versions[old]

    @staticmethod
    def _slopes(lesson: Lesson, own: Numbers) -> tuple[float, float, float]:
        """d log probability of (length, reward) by shift, scale and skill."""
        kind = lesson.kind
        u = (math.log(max(1, lesson.tokens)) - kind.middle) / kind.spread
        z = (u - own.shift) * math.exp(-own.scale)
        if lesson.truncated:  # of log P(longer)
            rate = _hazard(z)
            return rate * math.exp(-own.scale), rate * z, 0.0
        right = _sigmoid(kind.right + own.skill + kind.slope * u)
        return z * math.exp(-own.scale), z * z - 1.0, lesson.reward - right


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > -700 else 0.0


def _hazard(z: float) -> float:
    """Density over survival of the standard normal."""
    if z > 8:
        return z + 1 / z
    return math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) / (0.5 * math.erfc(z / math.sqrt(2)))
