"""Says what would shorten a wait on the critical path, and by which setting. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import msgspec

from pipeline.config.schema import Config

SLOW = 1.5
"""An engine that takes this many times as long for a token as the others is named."""
_FULL = 0.1  # share of a step from which waiting for slots is mentioned


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a run beside its waits."""

    config: Config
    paces: Mapping[str, float] = {}  # engine -> median seconds between tokens
    slot_wait_share: float = 0.0  # median wait of a candidate for a slot, of a step


def advice(lane: str, what: str, facts: RunFacts) -> str:
    """Says what would shorten this wait."""
    config = facts.config
    learner, engine = config.learner, config.engine
    engines = f"more engines (engine.count={engine.count} now)"
    ranks = f"more ranks (learner.ranks={learner.ranks} now)"
    beside = "" if learner.max_staleness else "; learner.max_staleness=1 runs it beside generation"
    if what in ("decoding", "to the first token"):
        name = lane.removeprefix("engine ")
        if slow := slower(name, facts.paces):
            return slow
        if facts.slot_wait_share > _FULL:
            return (
                f"candidates wait for slots (engine.slots={engine.slots} now): fewer candidates "
                f"(redundancy of the budget), {engines}, or more slots if decoding stays as fast"
            )
        return f"a selector that waits for fewer responses; {engines}"
    if what == "forward and backward":
        if learner.overlap == "off":
            return f"learner.overlap=group trains while other groups are generated; {ranks}"
        return f"{ranks}, fewer tokens trained on"
    if lane == "environments":
        return f"a faster environment, or more workers (workers.count={config.workers.count} now)"
    if what in ("waiting for a worker", "scoring"):
        return f"a faster reward, or more workers (workers.count={config.workers.count} now)"
    if what in ("receiving weights", "loading weights", "proving weights", "weights"):
        return f"a faster disk for the weights{beside}"
    if what.startswith("busy with "):
        return f"less work for the rank beside training; {ranks}"
    return {
        "old and reference logprobs": f"learner.overlap=token streams them; {ranks}",
        "optimizer step": f"{ranks}, learner.zero",
        "passes and optimizer steps": f"fewer learner.updates and epochs, {ranks}",
        "publishing weights": "a faster disk for the weights",
        "tokens on their way": f"larger chunks (engine.chunk_tokens={engine.chunk_tokens} now), or "
        "a core for the stage",
        "request on its way": "a core for the engine's front end, or a faster network",
        "waiting for its clock or its peers": "see the warnings of the run: a process was still "
        "joining or restarting",
        "between passes": f"fewer, larger passes (learner.tokens_per_micro_batch); {ranks}",
        "not known": "this is a bug in darts: please report it",
        "deciding": "a cheaper selector or budget, or a core for the stage",
    }.get(what, "a core for each process, or a faster network between them")


def slower(engine: str, engines: Mapping[str, float]) -> str:
    """Says so if this engine is much slower than the others; else ''.

    >>> slower("e1", {"e0": 0.01, "e1": 0.04})
    'a token takes 40.0 ms on e1, 10.0 ms on the others (4.0x): check its machine'
    """
    others = [pace for name, pace in engines.items() if name != engine]
    if engine not in engines or not others:
        return ""
    mine, usual = engines[engine], statistics.median(others)
    if mine < SLOW * usual:
        return ""
    return (
        f"a token takes {1e3 * mine:.1f} ms on {engine}, {1e3 * usual:.1f} ms on the others "
        f"({mine / usual:.1f}x): check its machine"
    )


def paces(steps: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """Returns each engine's seconds between tokens, the median over steps."""
    found: dict[str, list[float]] = {}
    for engines in steps:
        for engine, metrics in engines.items():
            if "inter_token_s" in metrics:
                found.setdefault(engine, []).append(metrics["inter_token_s"])
    return {engine: statistics.median(values) for engine, values in found.items()}
