"""Predicts how many tokens a response has still to come, from those that have ended before it.

An engine that predicts it itself (a length value model) is believed. Else there are the lengths of
the last 512 responses that came to their end: the expectation is their mean among those longer than
what is held, or what the prompt's own responses have had on average, where that is not passed yet.
Updated in event order, so that a replay is exact.
Sources: LenVM, arXiv 2604.27039, for the engine's number; Past-Future (ASPLOS 2025) for the
distribution, drawn from on condition of what is held. A prompt's own mean is ours.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pipeline.coordinator.groups import Trajectory
from pipeline.coordinator.running_stats import Window

AT_LEAST = 16
"""Responses that must have ended before their lengths count as a distribution."""
_NEWEST = 0.5
"""Weight of a response in its prompt's moving average."""
MOST_PROMPTS = 65_536
"""Prompts whose own lengths are kept, those sampled last."""
_GOLDEN = 0.6180339887498949


class ForecastState(msgspec.Struct, frozen=True):
    lengths: list[float] = []
    prompts: list[tuple[int, float]] = []  # those sampled last at the end


def peak_tokens(requests: Iterable[tuple[float, float]]) -> float:
    """Largest number of tokens that these requests will hold at once.

    When the k-th longest of them ends, k requests have grown by what it had left.

    Args:
        requests: (tokens held now, tokens to come) of each.

    Source: Past-Future scheduler, code of ModelTC/lightllm.

    >>> peak_tokens([(10, 5), (4, 20), (6, 1)])
    24
    """
    held: float = 0
    peak: float = 0
    longest_first = sorted(requests, key=lambda request: -request[1])
    for count, (now, to_come) in enumerate(longest_first, start=1):
        held += now
        peak = max(peak, to_come * count + held)
    return peak


class LengthForecast:
    """Lengths of responses that have ended, and what follows from them for those that have not."""

    def __init__(self, state: ForecastState | None = None) -> None:
        state = state or ForecastState()
        self._lengths = Window(state.lengths)
        self._prompts = dict(state.prompts)

    def state(self) -> ForecastState:
        return ForecastState(list(self._lengths.values), list(self._prompts.items()))

    def ended(self, prompt: int, tokens: int) -> None:
        """A response of this training prompt has come to its end, or to its limit."""
        self._lengths.add(float(tokens))
        mean = self._prompts.pop(prompt, float(tokens))
        self._prompts[prompt] = mean + _NEWEST * (tokens - mean)  # the last one now
        if len(self._prompts) > MOST_PROMPTS:
            del self._prompts[next(iter(self._prompts))]

    def fresh(self, prompt: int) -> float | None:
        """Tokens that a new candidate of this prompt is expected to have; None: not known."""
        return self._prompts.get(prompt, self._lengths.mean())

    def expected(self, member: Trajectory, prompt: int) -> float:
        """Tokens that it is expected to have still to come."""
        if member.remaining is not None:
            return member.remaining
        held, rest = member.sampled, float(member.max_tokens - member.held)
        own = self._prompts.get(prompt, 0.0)
        if own > held:
            return min(rest, own - held)
        longer = self._lengths.above(held)
        return min(rest, sum(longer) / len(longer) - held) if longer else rest

    def drawn(self, member: Trajectory) -> float:
        """Tokens to come as drawn from the lengths of those that were longer: over many members the
        draws have their distribution. What the limit leaves, where too few are known.

        Where in the distribution a member is drawn depends on its number alone: multiples of the
        golden ratio, which are spread more evenly than random numbers.
        """
        if member.remaining is not None:
            return member.remaining
        held, rest = member.sampled, float(member.max_tokens - member.held)
        longer = self._lengths.above(held)
        if not longer or len(self._lengths.values) < AT_LEAST:
            return rest
        place = member.id * _GOLDEN % 1.0
        return min(rest, longer[int(place * len(longer))] - held)
