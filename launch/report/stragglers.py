"""The bars of a step -> its trajectories, and the position of its critical path. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from launch.report.spans import EVALUATION, Bar, Lane, Row, TracedStep
from launch.report.straggler_path import trajectory_of
from launch.run_files.records import Segment


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """A trajectory in one step, all legs together; seconds since the step's start."""

    trajectory: int
    group: int | None
    prompt: int | None
    engine: str
    row: Row  # row of its last leg
    fate: str
    tokens: int
    running_s: float
    end: float


class PathSpan(msgspec.Struct, frozen=True, kw_only=True):
    """A segment of the critical path, placed in the picture."""

    what: str
    detail: str
    lane: str
    row: Row
    start: float
    end: float


def step_trajectories(step: TracedStep) -> list[Life]:
    """Returns the training trajectories that ended in the step, the longest-running first."""
    legs: dict[int, list[Bar]] = defaultdict(list)
    for bar in step.bars:
        if bar.slot and bar.kind != EVALUATION and bar.trajectory is not None:
            legs[bar.trajectory].append(bar)
    found: list[Life] = []
    for trajectory, bars in legs.items():
        last = max(bars, key=lambda bar: bar.end)
        if last.end > 0:
            found.append(
                Life(
                    trajectory=trajectory,
                    group=last.args.get("group"),
                    prompt=last.args.get("prompt"),
                    engine=last.lane.removeprefix("engine "),
                    row=last.row,
                    fate=last.name,
                    tokens=sum(bar.args["tokens"] for bar in bars),
                    running_s=sum(bar.end - bar.start for bar in bars),
                    end=last.end,
                )
            )
    return sorted(found, key=lambda life: -life.running_s)


def path_spans(step: TracedStep, path: Sequence[Segment], lanes: Sequence[Lane]) -> list[PathSpan]:
    """Places the path's segments one after another, each on the row of its work: the bar in its
    lane that covers most of it, if possible one of its own trajectory."""
    by_lane: dict[str, list[Bar]] = defaultdict(list)
    for bar in step.bars:
        by_lane[bar.lane].append(bar)
    first = {lane.name: min(lane.rows.values(), key=lambda row: row.y) for lane in lanes}
    found: list[PathSpan] = []
    now = 0.0
    for segment in path:
        end = now + segment.seconds
        bars = by_lane[segment.lane]
        if (trajectory := trajectory_of(segment)) is not None:
            own = [bar for bar in bars if bar.trajectory == trajectory]
            bars = own or bars
        row = max(bars, key=lambda b: min(b.end, end) - max(b.start, now)).row if bars else None
        row = row or first.get(segment.lane)
        if row is not None:
            found.append(
                PathSpan(what=segment.what, detail=segment.detail, lane=segment.lane, row=row,
                      start=now, end=end)
            )  # fmt: skip
        now = end
    return found
