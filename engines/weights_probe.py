"""Measures whether an engine serves the weights that it was given, by a probe.

Turns a manifest and the engine's own logprobs of the manifest's probe into gaps
in nats. Decides nothing: the stage admits an engine by its gaps or has it load again.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence

from engines.base import Engine, EngineError
from pipeline.wire.messages import Manifest, Span, Spans

PROBES = 16
"""Positions of a probe that an engine answers one by one. The engine has room for twice as many
requests beyond its slots (the probe has two temperatures), so a probe never waits for a slot."""
_FEWEST = 8  # positions that a probe must compare
LOAD_STAGES = ("receiving weights", "loading weights", "proving weights")


async def prove_weights(engine: Engine, manifest: Manifest) -> dict[str, float]:
    """Return temperature -> gap of the probe; zeros where the engine has no model."""
    if not engine.has_model:
        return dict.fromkeys(manifest.logprobs, 0.0)
    temperatures = list(manifest.logprobs)
    found = await asyncio.gather(*(engine.logprobs(manifest.probe, float(t)) for t in temperatures))
    return {
        temperature: largest_gap(logprobs, manifest.logprobs[temperature], temperature)
        for temperature, logprobs in zip(temperatures, found, strict=True)
    }


def load_spans(version: int, asked_s: float, moments: list[float]) -> Spans:
    """Return the spans of a load, one for each of its stages, from the times between them."""
    spans: list[Span] = []
    for what, (begin, end) in zip(LOAD_STAGES, itertools.pairwise(moments), strict=True):
        spans.append(Span(what, begin, end, (version,), () if spans else (asked_s,)))
    return Spans(spans=tuple(spans))


def largest_gap(found: list[float], expected: list[float], temperature: str) -> float:
    """Return the largest difference of two probes, over the positions that the engine answered.

    Raises EngineError if those are fewer than eight, or one is not finite.

    >>> largest_gap([-1.0] * 8 + [math.nan], [-1.0] * 7 + [-1.5, -3.0], "1.0")
    0.5
    """
    if len(found) != len(expected):
        raise EngineError(
            f"the probe has {len(found)} positions, its manifest has {len(expected)} logprobs"
        )
    differences = [
        abs(one - other) for one, other in zip(found, expected, strict=True) if not math.isnan(one)
    ]
    if len(differences) < min(_FEWEST, len(expected)) or not differences:
        raise EngineError(
            f"the probe at temperature {temperature} compares {len(differences)} of "
            f"{len(expected)} positions; at least {_FEWEST} are needed"
        )
    # NaN in `expected` proves nothing, and `max` may overlook it.
    return math.inf if any(map(math.isnan, differences)) else max(differences)


async def probe_one_by_one(
    tokens: Sequence[int], ask: Callable[[Sequence[int], int], Awaitable[float]]
) -> list[float]:
    """Answer `Engine.logprobs` at up to `PROBES` positions; NaN at the others.

    Args:
        ask: returns the logprob of a token after those before it.
    """
    positions = spread_positions(len(tokens) - 1, PROBES)
    found = await asyncio.gather(*(ask(tokens[: i + 1], tokens[i + 1]) for i in positions))
    answer = [math.nan] * (len(tokens) - 1)
    for position, logprob in zip(positions, found, strict=True):
        answer[position] = logprob
    return answer


def spread_positions(count: int, at_most: int) -> list[int]:
    """Pick up to `at_most` of 0..count-1, evenly spaced, both ends included.

    >>> spread_positions(9, 3)
    [0, 4, 8]
    """
    if count <= at_most:
        return list(range(count))
    return [round(i * (count - 1) / (at_most - 1)) for i in range(at_most)]
