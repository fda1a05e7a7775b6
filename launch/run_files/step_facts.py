"""Facts about one step from `metrics.jsonl`: its start, its length, and what it waited for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from launch.run_files.jsonl import read_lines
from launch.run_files.records import Straggler, TimingLine
from pipeline.observability.critical_path import Segment


class _Step(msgspec.Struct, frozen=True, kw_only=True):
    """Line `step`, written when the step has ended."""

    step: int
    seconds: float
    reward: float
    groups: dict[str, int] = {}  # ended groups by fate and reason
    time: float = 0.0


class StepFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A step that has ended."""

    step: int
    seconds: float
    reward: float
    groups: dict[str, int]
    since: float  # start, wall clock, seconds since 1970; 0: not known
    critical_path: tuple[Segment, ...] = ()
    stragglers: tuple[Straggler, ...] = ()  # of the groups that waited longest


def step_facts(path: Path, step: int, say: Callable[[str], None]) -> StepFacts | None:
    """Returns the facts about a step (from 0); None if it has not ended or the file is gone.

    Args:
        say: see `jsonl.read_lines`.
    """
    if not path.exists():
        return None
    found: StepFacts | None = None
    for line in read_lines(path, {"step": _Step, "timing": TimingLine}, say):
        if line.step != step:
            continue
        if isinstance(line, _Step):
            since = line.time - line.seconds if line.time else 0.0
            found = StepFacts(
                step=step, seconds=line.seconds, reward=line.reward, groups=line.groups, since=since
            )
        elif found is not None:
            return msgspec.structs.replace(
                found, critical_path=line.critical_path, stragglers=line.stragglers
            )
    return found
