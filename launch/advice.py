"""What would shorten a wait on the critical path, in words that name a setting. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

SLOW = 1.5
"""An engine whose tokens take so many times as long as those of the others is named."""

_ADVICE = {
    "waiting for a worker": "more reward workers (reward.NAME.workers), or a faster reward",
    "scoring": "a faster reward function",
    "to the first token": "shorter prompts, or fewer requests at a time (engine.slots): they wait "
    "for one another's prefill",
    "decoding": "fewer tokens: a selector that ends groups sooner, less redundancy; or more "
    "engines (engine.count)",
    "weights": "fewer loads: learner.max_staleness=1 has them beside generation",
    "receiving weights": "weights on a faster disk; learner.max_staleness=1 hides it",
    "loading weights": "learner.max_staleness=1 has it beside generation",
    "proving weights": "learner.max_staleness=1 has it beside generation",
    "tokens on their way": "fewer, larger chunks (engine.chunk_tokens), or a core for the stage",
    "request on its way": "a core for the engine's front end, or a faster network",
    "forward and backward": "overlap (learner.overlap=group), more ranks (learner.ranks), fewer "
    "tokens trained on",
    "old and reference logprobs": "token streaming (learner.overlap=token), more ranks",
    "optimizer step": "more ranks (learner.ranks), learner.zero",
    "passes and optimizer steps": "fewer learner.updates and epochs, more ranks (learner.ranks)",
    "publishing weights": "weights on a faster disk",
    "deciding": "a cheaper selector or budget, or a core for the stage",
}
_OTHER = "a core for each process, or a faster network between them"


def advice(lane: str, what: str, engines: Mapping[str, float]) -> str:
    """What would make this wait shorter.

    Args:
        engines: seconds between tokens of each engine, its median.
    """
    engine = lane.removeprefix("engine ")
    if what in ("decoding", "to the first token") and (slow := slower(engine, engines)):
        return slow
    return _ADVICE.get(what, _OTHER)


def slower(engine: str, engines: Mapping[str, float]) -> str:
    """In words, if this engine is much slower than the others; else ''.

    >>> slower("e1", {"e0": 0.01, "e1": 0.04})
    'a token takes 40.0 ms on e1, 10.0 ms on the others (4.0x): look at its machine'
    """
    others = [pace for name, pace in engines.items() if name != engine]
    if engine not in engines or not others:
        return ""
    mine, usual = engines[engine], statistics.median(others)
    if mine < SLOW * usual:
        return ""
    return (
        f"a token takes {1e3 * mine:.1f} ms on {engine}, {1e3 * usual:.1f} ms on the others "
        f"({mine / usual:.1f}x): look at its machine"
    )


def paces(steps: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """Each engine's seconds between tokens, the median over steps' figures of engines."""
    found: dict[str, list[float]] = {}
    for engines in steps:
        for engine, figures in engines.items():
            if "inter_token_s" in figures:
                found.setdefault(engine, []).append(figures["inter_token_s"])
    return {engine: statistics.median(values) for engine, values in found.items()}
