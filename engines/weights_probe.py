"""Proves that an engine serves the weights that it was given, by its tensors and by a probe.

Turns a manifest into `WeightsLoaded`, or into a refusal if the engine holds another tensor or
computes as it did before. How large the gaps may be is the stage's decision.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence

from engines.base import Engine, EngineError
from engines.weights import WeightsError
from engines.weights_change import Answer, Probed, judge_change
from pipeline.wire.messages import Manifest, Span, Spans, WeightsLoaded

PROBES = 16
"""Positions of a probe that an engine answers one by one. The engine has room for twice as many
requests beyond its slots (the probe has two temperatures), so a probe never waits for a slot."""
_FEWEST = 8  # positions that a probe must compare
LOAD_STAGES = ("receiving weights", "loading weights", "proving weights")


class WeightsProof:
    """Proves one engine's versions, one after another.

    Keeps the logprobs of the newest version that it was seen to have reached. Versions that the
    probe cannot tell from it add up, so that an engine that stands still is found in the end.
    """

    def __init__(self, engine: Engine, log: Callable[[str], None]) -> None:
        self._engine, self._log = engine, log
        self._before: Probed | None = None

    async def prove(self, manifest: Manifest, directory: str) -> WeightsLoaded:
        """Check the version loaded last.

        If all published tensors are held and equal, it is proved, whatever the probe says;
        otherwise the probe decides (`judge_change`).

        Raises: WeightsError if a tensor differs, or the probe says that the engine is stale.
        """
        if not self._engine.has_model:
            return WeightsLoaded(
                version=manifest.version, gaps=dict.fromkeys(manifest.logprobs, 0.0)
            )
        held = await self._engine.check_tensors(directory, manifest.tensors)
        if held.different:
            some = ", ".join(held.different[:3])
            raise WeightsError(
                f"{len(held.different)} of {len(manifest.tensors)} tensors are not those that "
                f"were published: {some}{', ...' if len(held.different) > 3 else ''}"
            )
        found = await probe_engine(self._engine, manifest)
        gaps = {t: largest_gap(found[t], manifest.logprobs[t], t) for t in found}
        now = probed(manifest, found)
        change = judge_change(self._before, now)
        published = len(manifest.tensors) + manifest.unlisted
        complete = bool(manifest.tensors) and len(held.equal) == published
        stale = change.answer == Answer.STALE and not manifest.rounded_after
        figures = f"moved {change.moved:.3g} +- {change.doubt:.2g}, missing {change.missing:.2g}"
        if stale and not complete:
            assert self._before is not None
            raise WeightsError(
                f"the probe shows version {self._before.version} or a part of it ({figures} of "
                "the learner's change)"
            )
        if stale:
            self._log(
                f"version {manifest.version}: all tensors are those that were published, but the "
                f"probe does not follow the learner's ({figures}): does it publish what it trains?"
            )
        if complete or change.arrived or self._before is None:
            self._before = now
        return WeightsLoaded(
            version=manifest.version,
            gaps=gaps,
            proved=complete or change.answer == Answer.PROVED,
            tensors_checked=len(held.equal),
            tensors=published,
        )


async def probe_engine(engine: Engine, manifest: Manifest) -> dict[str, list[float]]:
    """Return temperature -> the engine's logprobs of the manifest's probe; NaN: not answered."""
    temperatures = list(manifest.logprobs)
    found = await asyncio.gather(*(engine.logprobs(manifest.probe, float(t)) for t in temperatures))
    return dict(zip(temperatures, found, strict=True))


def probed(manifest: Manifest, found: Mapping[str, Sequence[float]]) -> Probed:
    """Join the logprobs of all temperatures."""
    return Probed(
        manifest.version,
        [one for temperature in found for one in manifest.logprobs[temperature]],
        [one for logprobs in found.values() for one in logprobs],
    )


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
