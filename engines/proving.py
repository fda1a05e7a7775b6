"""Whether an engine serves the weights that it was given: the probe, and what a load took.

Turns a manifest and the engine's own logprobs of the manifest's probe into gaps
in nats. Decides nothing: the stage admits an engine by its gaps or has it load again.
"""

from __future__ import annotations

import asyncio
import itertools
import math

from engines.base import Engine, EngineError
from pipeline.messages import Manifest, Span, Spans

_PROBES = 8  # positions that a probe must compare
LOAD_STAGES = ("receiving weights", "loading weights", "proving weights")


async def prove(engine: Engine, manifest: Manifest) -> dict[str, float]:
    """Temperature -> gap of the probe; zeros where the engine has no model."""
    if not engine.has_model:
        return dict.fromkeys(manifest.logprobs, 0.0)
    temperatures = list(manifest.logprobs)
    found = await asyncio.gather(*(engine.logprobs(manifest.probe, float(t)) for t in temperatures))
    return {
        temperature: gap(logprobs, manifest.logprobs[temperature], temperature)
        for temperature, logprobs in zip(temperatures, found, strict=True)
    }


def load_spans(version: int, asked_s: float, moments: list[float]) -> Spans:
    """The load of a version, stage by stage, from the moments between them."""
    spans: list[Span] = []
    for what, (begin, end) in zip(LOAD_STAGES, itertools.pairwise(moments), strict=True):
        spans.append(Span(what, begin, end, (version,), () if spans else (asked_s,)))
    return Spans(spans=tuple(spans))


def gap(found: list[float], expected: list[float], temperature: str) -> float:
    """Largest difference of two probes, over what the engine could tell.

    Raises EngineError if that is less than eight positions, or not finite.

    >>> gap([-1.0] * 8 + [math.nan], [-1.0] * 7 + [-1.5, -3.0], "1.0")
    0.5
    """
    if len(found) != len(expected):
        raise EngineError(
            f"the probe has {len(found)} positions, its manifest {len(expected)} logprobs"
        )
    differences = [
        abs(one - other) for one, other in zip(found, expected, strict=True) if not math.isnan(one)
    ]
    if len(differences) < min(_PROBES, len(expected)) or not differences:
        raise EngineError(
            f"the probe at temperature {temperature} compares {len(differences)} of "
            f"{len(expected)} positions; at least {_PROBES} are needed"
        )
    # NaN in `expected` is no proof, and `max` may overlook it.
    return math.inf if any(map(math.isnan, differences)) else max(differences)
