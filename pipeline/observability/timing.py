"""Figures of a step's time: how long everything took, who waited, and for whom.

Turns a `StepRecord` into the `timing` line of `metrics.jsonl`. Names are the field's:
time to first token, inter-token latency (the mean within a response, over responses).
Pure.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pipeline.observability.critical_path import NOT_KNOWN
from pipeline.observability.spans import EnvironmentCall, Leg, StepRecord, TrainDispatch
from pipeline.wire.messages import PUBLISH

PERCENTILES = (50, 95, 99)
LENGTHS = ((0, 50), (50, 90), (90, 99), (99, 100))
"""Percentile groups of response length that lives are reported for."""
_STRAGGLERS = 5  # groups that waited longest for one trajectory
MEANINGS = {
    "slot_wait_s": "a candidate's wait for a slot",
    "time_to_first_token_s": "request sent to first token, at the engine",
    "inter_token_s": "mean between tokens of a response, over responses",
    "chunk_to_stage_s": "an engine's frame, sent to heard",
    "chunk_to_learner_s": "hints of new tokens to a rank, sent to heard (learner.overlap=token)",
    "group_to_learner_s": "a group, sent to heard by its learner rank",
    "decision_s": "an event at the stage to its commands sent, where something was decided",
    "reward_wait_s": "a reward asked to begun",
    "reward_s": "a reward begun to ended",
    "turn_wait_s": "a turn that is over, told to the environment, to begun (environment)",
    "turn_s": "an environment's answer begun to ended (environment)",
    "group_s": "a group's first candidate queued to the group's going to the learner",
    "learner_wait_s": "a group at the rank to its pass",
    "last_token_to_trained_s": "a group's last token heard to its gradient heard",
    "weights_publish_s": "new weights written by rank 0",
    "weights_load_s": "new weights asked for to proved, at an engine",
}
"""What is measured, by its name among `percentiles`, as docs/latency.md has it."""


def timing_metrics(record: StepRecord, reward_workers: int = 0) -> dict[str, Any]:
    """The fields of a step's `timing` line; seconds, but for counts and shares.

    Args:
        reward_workers: processes that score; 0: not known, no `bubble_reward`.
    """
    seconds = record.end - record.since
    legs = [leg for leg in record.legs if leg.kind == "train"]
    known = {key: percentiles_of(values) for key, values in samples(record, legs).items() if values}
    path = [[s.lane, s.what, round(s.seconds, 6), s.detail] for s in record.path]
    explained_s = sum(s.seconds for s in record.path if s.what != NOT_KNOWN)
    found: dict[str, Any] = {
        "step": record.step,
        "seconds": seconds,
        "since_s": record.since,
        "critical_path": path,
        "explained_share": explained_s / seconds if seconds > 0 else 1.0,
        "percentiles": known,
        "engines": by_engine(legs),
        "lives": lives_by_length(legs, record.handovers, record.callings),
        "stragglers": stragglers(record),
    }
    if reward_workers and seconds > 0:
        since, end = record.since, record.end  # those of an evaluation before it do not count
        busy_s = sum(max(0.0, min(s.ended, end) - max(s.begun, since)) for s in record.scorings)
        found["bubble_reward"] = 1.0 - min(1.0, busy_s / (seconds * reward_workers))
    return found


def percentiles_of(values: Sequence[float]) -> dict[str, float]:
    """Count, percentiles and maximum.

    >>> summary([1.0, 2.0, 3.0])
    {'count': 3, 'p50': 2.0, 'p95': 2.9, 'p99': 2.98, 'max': 3.0}
    """
    found = np.percentile(values, PERCENTILES).tolist()
    named = {f"p{p}": round(value, 6) for p, value in zip(PERCENTILES, found, strict=True)}
    return {"count": len(values), **named, "max": round(max(values), 6)}


def samples(record: StepRecord, legs: Iterable[Leg]) -> dict[str, list[float]]:
    """Every measured time of the step, by name; seconds, none below 0.

    An order may be taken up while others of the same moment are still being sent.
    """
    timed = [leg for leg in legs if leg.first]
    loads, handovers = record.loads, record.handovers
    received = [h for h in handovers if h.received]
    last = _last_legs(record)
    scorings = [s for s in record.scorings if s.kind == "train"]
    callings = [c for c in record.callings if c.kind == "train"]
    decided = {d.at: d.seconds for d in record.decisions if d.at >= record.since}
    publishes = [w for w in record.works if w.what == PUBLISH]
    found = {
        "slot_wait_s": [leg.placed - leg.queued for leg in legs if leg.queued],
        "time_to_first_token_s": [leg.first - leg.placed for leg in timed],
        "inter_token_s": [t for leg in timed if (t := inter_token_s(leg)) is not None],
        "chunk_to_stage_s": [s for heard, s in record.frames if heard >= record.since],
        "chunk_to_learner_s": record.hints,
        "decision_s": list(decided.values()),
        "reward_wait_s": [s.begun - s.asked for s in scorings],
        "reward_s": [s.ended - s.begun for s in scorings],
        "turn_wait_s": [c.begun - c.asked for c in callings],
        "turn_s": [c.ended - c.begun for c in callings],
        "group_s": _group_times(record),
        "group_to_learner_s": [h.received - h.sent for h in received],
        "learner_wait_s": [h.begun - h.received for h in received],
        "last_token_to_trained_s": [
            h.heard - max(ends)
            for h in handovers
            if (ends := [last[t].heard for t in h.trajectories if t in last])
        ],
        "weights_publish_s": [w.end - w.start for w in publishes],
        "weights_load_s": [load.heard - load.asked for load in loads if load.served],
    }
    return {name: [max(0.0, value) for value in values] for name, values in found.items()}


def inter_token_s(leg: Leg) -> float | None:
    """Mean seconds between tokens of a leg; None with fewer than two, or times unknown."""
    if leg.tokens < 2 or not leg.first or not leg.last:
        return None
    return (leg.last - leg.first) / (leg.tokens - 1)


def by_engine(legs: Iterable[Leg]) -> dict[str, dict[str, float]]:
    """Each engine's median inter-token latency, legs and tokens."""
    found: dict[str, list[Leg]] = {}
    for leg in legs:
        found.setdefault(leg.engine, []).append(leg)
    table: dict[str, dict[str, float]] = {}
    for engine, mine in sorted(found.items()):
        paces = [pace for leg in mine if (pace := inter_token_s(leg)) is not None]
        table[engine] = {"legs": len(mine), "tokens": sum(leg.tokens for leg in mine)}
        if paces:
            table[engine]["inter_token_s"] = statistics.median(paces)
    return table


def lives_by_length(
    legs: Sequence[Leg],
    handovers: Iterable[TrainDispatch],
    callings: Iterable[EnvironmentCall] = (),
) -> list[dict[str, Any]]:
    """Returns where trajectories spent their time, by percentile group of their response length:
    the mean seconds of each phase; a phase that a trajectory did not reach counts as 0."""
    mine: dict[int, list[Leg]] = {}
    for leg in legs:
        mine.setdefault(leg.trajectory, []).append(leg)
    if not mine:
        return []
    taken = {t: h for h in handovers for t in h.trajectories}
    asked_s: dict[int, float] = {}  # of its environment
    for calling in callings:
        seconds = max(0.0, calling.heard - calling.asked)
        asked_s[calling.trajectory] = asked_s.get(calling.trajectory, 0.0) + seconds
    order = sorted(mine, key=lambda trajectory: mine[trajectory][0].length)
    found: list[dict[str, Any]] = []
    for low, high in LENGTHS:
        chosen = order[_rank(low, len(order)) : _rank(high, len(order))]
        if not chosen:
            continue
        sums: dict[str, float] = {}
        for trajectory in chosen:
            _add_phases(sums, mine[trajectory], taken.get(trajectory), asked_s.get(trajectory, 0.0))
        lengths = [mine[trajectory][0].length for trajectory in chosen]
        found.append(
            {
                "group": f"p{low}-p{high}",
                "trajectories": len(chosen),
                "tokens_mean": sum(lengths) / len(lengths),
                "seconds": {name: seconds / len(chosen) for name, seconds in sums.items()},
            }
        )
    return found


def _rank(percent: int, count: int) -> int:
    return round(percent / 100 * count)


def _add_phases(
    sums: dict[str, float], legs: Sequence[Leg], handover: TrainDispatch | None, asked_s: float
) -> None:
    """One trajectory's seconds of each phase, on top of those of others."""

    def add(name: str, start: float, end: float) -> None:
        sums[name] = sums.get(name, 0.0) + (end - start if end > start else 0.0)

    for leg in legs:
        first, last = leg.first or leg.heard, leg.last or leg.heard
        add("waiting for a slot", leg.queued or leg.placed, leg.placed)
        add("to the first token", leg.placed, first)
        add("decoding", first, last)
        add("tokens to the stage", last, leg.heard)
    if asked_s:
        add("waiting for the environment", 0.0, asked_s)
    if handover is not None:
        begun = handover.begun or handover.sent
        add("waiting for its group", max(leg.heard for leg in legs), handover.sent)
        add("waiting for the learner", handover.sent, begun)
        add("forward and backward", begun, handover.heard)


def stragglers(record: StepRecord) -> list[dict[str, Any]]:
    """Groups that waited longest for one of their trajectories, after half of them were there."""
    legs = _last_legs(record)
    found: list[dict[str, Any]] = []
    for handover in record.handovers:
        ends = sorted(
            ((legs[t].heard, t) for t in handover.trajectories if t in legs), key=lambda e: e[0]
        )
        if len(ends) < 2:
            continue
        last, trajectory = ends[-1]
        leg = legs[trajectory]
        found.append(
            {
                "group": handover.group,
                "trajectory": trajectory,
                "engine": leg.engine,
                "tokens": leg.length,
                "waited_s": last - ends[len(ends) // 2 - 1][0],
            }
        )
    return sorted(found, key=lambda f: -f["waited_s"])[:_STRAGGLERS]


def _group_times(record: StepRecord) -> list[float]:
    """Measures from a group's first candidate being queued to its going to the learner."""
    queued: dict[int, float] = {}
    for leg in record.legs:
        since = leg.queued or leg.placed
        queued[leg.group] = min(since, queued.get(leg.group, since))
    return [h.sent - queued[h.group] for h in record.handovers if h.group in queued]


def _last_legs(record: StepRecord) -> dict[int, Leg]:
    """Each trajectory's newest leg."""
    found: dict[int, Leg] = {}
    for leg in record.legs:
        known = found.get(leg.trajectory)
        if known is None or leg.heard > known.heard:
            found[leg.trajectory] = leg
    return found
