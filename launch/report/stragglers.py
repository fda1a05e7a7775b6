"""The bars of a step and its critical path -> who held it up, and where the path runs. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from launch.report.lines import Segment
from launch.report.spans import EVALUATION, Bar, Lane, Row, TracedStep

_TRAINED = "trained"
_TRAJECTORY = re.compile(r"trajectory (\d+)")


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """A trajectory in one step, its legs together; seconds since the step's start."""

    trajectory: int
    group: int | None
    prompt: int | None
    engine: str
    row: Row  # of its last leg
    fate: str
    tokens: int
    running_s: float
    end: float
    alone_s: float = 0.0  # for which it was the only one trained on of its group that had not ended


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A segment of the critical path in the picture."""

    what: str
    detail: str
    lane: str
    row: Row
    start: float
    end: float


def lives(step: TracedStep) -> list[Life]:
    """Training trajectories that ended in the step, the longest-running first."""
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
    return sorted(_alone(found), key=lambda life: -life.running_s)


def _alone(found: list[Life]) -> list[Life]:
    """With the seconds for which a group waited for the last that it was trained on."""
    ends: dict[int | None, list[float]] = defaultdict(list)
    for life in found:
        if life.fate == _TRAINED:
            ends[life.group].append(life.end)
    return [
        msgspec.structs.replace(life, alone_s=here[-1] - here[-2])
        if life.fate == _TRAINED
        and len(here := sorted(ends[life.group])) > 1
        and life.end == here[-1]
        else life
        for life in found
    ]


def straggler(found: Sequence[Life], path: Sequence[Segment]) -> Life | None:
    """Whom the step waited for: the trajectory of the path's longest part that names one, or
    without a path the one trained on that ended last."""
    named = [(s.seconds, int(m[1])) for s in path if (m := _TRAJECTORY.search(s.detail))]
    by_id = {life.trajectory: life for life in found}
    for _, trajectory in sorted(named, reverse=True):
        if trajectory in by_id:
            return by_id[trajectory]
    return max((f for f in found if f.fate == _TRAINED), key=lambda f: f.end, default=None)


def placed(step: TracedStep, path: Sequence[Segment], lanes: Sequence[Lane]) -> list[Place]:
    """The path's segments, one after another from the step's start, each on the row of what
    was done: of the bar of its lane that covers most of it, of its trajectory where it has one."""
    by_lane: dict[str, list[Bar]] = defaultdict(list)
    for bar in step.bars:
        by_lane[bar.lane].append(bar)
    first = {lane.name: min(lane.rows.values(), key=lambda row: row.y) for lane in lanes}
    found: list[Place] = []
    now = 0.0
    for segment in path:
        end = now + segment.seconds
        bars = by_lane[segment.lane]
        if match := _TRAJECTORY.search(segment.detail):
            own = [bar for bar in bars if bar.trajectory == int(match[1])]
            bars = own or bars
        row = max(bars, key=lambda b: min(b.end, end) - max(b.start, now)).row if bars else None
        row = row or first.get(segment.lane)
        if row is not None:
            found.append(
                Place(what=segment.what, detail=segment.detail, lane=segment.lane, row=row,
                      start=now, end=end)
            )  # fmt: skip
        now = end
    return found
