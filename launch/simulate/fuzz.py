"""Runs seeds with faults on all cores; failures are shrunk and printed."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from launch.simulate.own_plugins import Own, subject_of
from pipeline.simulation.fuzz import MODES, Mode, Outcome, play, shrink, world
from pipeline.simulation.subject import Subject

_SHOWN = 3
_CHUNK = 20


class Found(msgspec.Struct, kw_only=True):
    """Result of an exploration."""

    seeds: int = 0
    events: int = 0
    by_mode: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    violations: int = 0
    shown: list[Outcome] = msgspec.field(default_factory=list[Outcome])  # shrunk; the first few


def _play(job: tuple[int, Mode, Own | None]) -> Outcome:
    seed, mode, own = job
    return play(seed, mode, subject=_subject(own))


def _subject(own: Own | None) -> Subject | None:
    return None if own is None else subject_of(own)


def explore(
    seeds: Sequence[int],
    modes: Sequence[Mode] = MODES,
    progress: Callable[[int], None] = lambda done: None,
    processes: int | None = None,
    own: Own | None = None,
) -> Found:
    """Runs each seed in one of the modes, in turn.

    Args:
        progress: called with the number of seeds done.
        processes: all cores by default.
        own: the configuration whose plug-ins are tried; None: those of the house, drawn by seed.
    """
    jobs = [(seed, modes[number % len(modes)], own) for number, seed in enumerate(seeds)]
    found, counts = Found(), Counter[str]()
    with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count()) as pool:
        for outcome in pool.imap(_play, jobs, chunksize=_CHUNK):
            found.seeds += 1
            found.events += outcome.events
            counts[outcome.mode.value] += 1
            if outcome.violation:
                found.violations += 1
                if len(found.shown) < _SHOWN:
                    found.shown.append(shrink(outcome, subject=_subject(own)))
            progress(found.seeds)
    found.by_mode = dict(counts)
    return found


def outcome_text(outcome: Outcome, own: Own | None = None) -> str:
    """Describes a seed: its faults, its last events, the plug-ins, and how to run it again."""
    if not outcome.violation:
        return f"seed {outcome.seed}, {outcome.mode}: all held over {outcome.events} events"
    subject = _subject(own)
    plan = world(outcome.seed, outcome.mode, subject).faults
    lines = [f"seed {outcome.seed}, {outcome.mode}: {outcome.violation}"]
    lines += [f"  fault {number}: {plan[number]}" for number in outcome.faults]
    lines += [f"  {line}" for line in outcome.log]
    lines += outcome.traceback.splitlines()
    lines += [] if subject is None else [f"plug-ins: {subject.plugins()}"]
    return "\n".join([*lines, f"again: {outcome.command}"])
