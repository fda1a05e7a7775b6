"""Lengths of one group, some of them lower bounds -> mean and variance of its responses.

A candidate that was aborted or truncated would have been longer: leaving it out
makes verbose prompts look uniform, and taking its length as it is does too. Lengths
are taken as lognormal; what was cut short is completed by what that law expects
beyond the cut. With nothing cut short this is the plain sample variance. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

_LEAST_SPREAD, _MOST_SPREAD = 0.02, 2.0
"""Of log length. Below, a whole prompt differs by less than rounding does; above, the tail of a
fit to a few points would outweigh all that was seen (simulations here use 0.3 to 1.2)."""
_ROUNDS = 200
_CLOSE = 1e-4  # nats; a change that ends the iteration


class Lognormal(msgspec.Struct, frozen=True):
    """A law of lengths: log length has this mean and standard deviation, nats."""

    centre: float
    spread: float


def lognormal(mean: float, variance: float) -> Lognormal:
    """The law with this mean (tokens) and variance (tokens squared)."""
    squared = math.log1p(variance / mean**2)
    spread = min(max(math.sqrt(squared), _LEAST_SPREAD), _MOST_SPREAD)
    return Lognormal(math.log(mean) - spread**2 / 2, spread)


def fit_lognormal(lengths: Sequence[int], censored: Sequence[bool]) -> Lognormal:
    """Maximum likelihood of lognormal lengths where some are lower bounds.

    Expectation maximisation: a lower bound is replaced by the mean and second moment of the
    normal beyond it. Source: Dempster, Laird, Rubin 1977, section 4.2; Wolynetz 1979, AS 138.

    Args:
        lengths: tokens, 1 or more each; two of them or more not censored.
        censored: whether a length is a lower bound.
    """
    known = [math.log(n) for n, cut in zip(lengths, censored, strict=True) if not cut]
    bounds = [math.log(n) for n, cut in zip(lengths, censored, strict=True) if cut]
    count = len(known) + len(bounds)
    centre = math.fsum(known + bounds) / count
    spread = math.sqrt(math.fsum((y - centre) ** 2 for y in known + bounds) / count)
    spread = min(max(spread, _LEAST_SPREAD), _MOST_SPREAD)
    for _ in range(_ROUNDS):
        at = [(bound - centre) / spread for bound in bounds]
        beyond = [_hazard(a) for a in at]
        filled = [centre + spread * h for h in beyond]
        new = (math.fsum(known) + math.fsum(filled)) / count
        # 1 + a h - h^2 is the variance left to a standard normal beyond a
        left = [spread**2 * (1 + a * h - h * h) for a, h in zip(at, beyond, strict=True)]
        squares = math.fsum((y - new) ** 2 for y in known + filled) + math.fsum(left)
        wide = min(max(math.sqrt(max(squares, 0.0) / count), _LEAST_SPREAD), _MOST_SPREAD)
        moved = abs(new - centre) + abs(wide - spread)
        centre, spread = new, wide
        if moved < _CLOSE:
            break
    return Lognormal(centre, spread)


def moments(
    lengths: Sequence[int],
    censored: Sequence[bool],
    limit: float,
    known: Lognormal | None = None,
) -> tuple[float, float] | None:
    """Mean (tokens) and variance (tokens squared, divisor n - 1) expected of a group's responses.

    Args:
        lengths, censored: as in `fit_lognormal`, of every candidate.
        limit: tokens that no response exceeds, infinity if there is none. What reached it
            counts as that long, though in the fit it is a lower bound.
        known: the law as known before; used when fewer than two have finished.

    Returns: None if there are fewer than two lengths, or nothing to complete them by.
    """
    count = len(lengths)
    if count < 2:
        return None
    law = known
    if any(censored) and count - sum(censored) >= 2:
        law = fit_lognormal(lengths, censored)
    filled: list[float] = []
    doubt = 0.0  # variance of what was filled in, summed
    for length, cut in zip(lengths, censored, strict=True):
        if not cut or length >= limit:
            filled.append(length)
        elif law is None:
            return None
        else:
            mean, variance = _beyond(law, length, limit)
            filled.append(mean)
            doubt += variance
    mean = math.fsum(filled) / count
    squares = math.fsum((length - mean) ** 2 for length in filled)
    return mean, (squares + doubt * (count - 1) / count) / (count - 1)


def _beyond(law: Lognormal, length: int, limit: float) -> tuple[float, float]:
    """Mean and variance of min(X, limit), given that X > length."""
    low = (math.log(length) - law.centre) / law.spread
    high = (math.log(limit) - law.centre) / law.spread
    left = _above(low)
    if left < 1e-12:  # so far out that the law says nothing: the bound itself
        return float(length), 0.0
    found: list[float] = []
    for power in (1, 2):
        shift = power * law.spread
        whole = math.exp(power * law.centre + shift**2 / 2)
        ended = whole * (_above(low - shift) - _above(high - shift))
        stopped = limit**power * _above(high) if math.isfinite(limit) else 0.0
        found.append((ended + stopped) / left)
    mean = max(found[0], float(length))
    return mean, max(found[1] - mean**2, 0.0)


def _above(z: float) -> float:
    """Share of a standard normal above z."""
    return math.erfc(z / math.sqrt(2)) / 2


def _hazard(z: float) -> float:
    """Mean of a standard normal beyond z: its density over the share above."""
    if z > 25:  # the share nears the smallest float; the third term keeps 1 + z h - h^2 above 0
        return z + 1 / z - 2 / z**3
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / _above(z)
