"""Runs seeds with faults on all cores; failures are shrunk and printed."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from pipeline.simulation.fuzz import MODES, Mode, Outcome, play, shrink, world

_SHOWN = 3
_CHUNK = 20


class Found(msgspec.Struct, kw_only=True):
    """Result of an exploration."""

    seeds: int = 0
    events: int = 0
    by_mode: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    violations: int = 0
    shown: list[Outcome] = msgspec.field(default_factory=list[Outcome])  # shrunk; the first few


def _play(job: tuple[int, Mode]) -> Outcome:
    return play(*job)


def explore(
    seeds: Sequence[int],
    modes: Sequence[Mode] = MODES,
    progress: Callable[[int], None] = lambda done: None,
    processes: int | None = None,
) -> Found:
    """Runs each seed in one of the modes, in turn; `processes` defaults to all cores."""
    jobs = [(seed, modes[number % len(modes)]) for number, seed in enumerate(seeds)]
    found, counts = Found(), Counter[str]()
    with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count()) as pool:
        for outcome in pool.imap(_play, jobs, chunksize=_CHUNK):
            found.seeds += 1
            found.events += outcome.events
            counts[outcome.mode.value] += 1
            if outcome.violation:
                found.violations += 1
                if len(found.shown) < _SHOWN:
                    found.shown.append(shrink(outcome))
            progress(found.seeds)
    found.by_mode = dict(counts)
    return found


def outcome_text(outcome: Outcome) -> str:
    """Describes a seed: its faults, its last events, and the command that repeats it."""
    if not outcome.violation:
        return f"seed {outcome.seed}, {outcome.mode}: all held over {outcome.events} events"
    plan = world(outcome.seed, outcome.mode).faults
    lines = [f"seed {outcome.seed}, {outcome.mode}: {outcome.violation}"]
    lines += [f"  fault {number}: {plan[number]}" for number in outcome.faults]
    lines += [f"  {line}" for line in outcome.log]
    return "\n".join([*lines, f"again: {outcome.command}"])
