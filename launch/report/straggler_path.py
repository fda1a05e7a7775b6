"""A critical path -> the trajectories on it, and the work before the first and after the last.

The last one is the step's straggler: after its end only the work that follows it was left. All are
parts of one path, so their seconds add up to the step's. Pure.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from launch.run_files.records import Segment

_TRAJECTORY = re.compile(r"trajectory (\d+)")
_ENGINE = "engine "

Kinds = list[tuple[str, float]]
"""Kinds of work with their seconds, the longest first."""


class PathLink(msgspec.Struct, frozen=True, kw_only=True):
    """A trajectory on the path; seconds since the step's start."""

    trajectory: int
    engine: str
    start: float
    end: float  # start of the next one; for the last one, its last token at the engine


class StragglerPath(msgspec.Struct, frozen=True, kw_only=True):
    """The whole path."""

    before: Kinds
    links: list[PathLink]
    after: Kinds


def trajectory_of(segment: Segment) -> int | None:
    """Returns the trajectory of a segment; None if it has none."""
    match = _TRAJECTORY.search(segment.detail)
    return int(match[1]) if match else None


def straggler_path(path: Sequence[Segment]) -> StragglerPath:
    """Finds the trajectories on a step's critical path."""
    starts: list[float] = [0.0]
    for segment in path:
        starts.append(starts[-1] + segment.seconds)
    at_engine = [
        (i, trajectory)
        for i, segment in enumerate(path)
        if segment.lane.startswith(_ENGINE) and (trajectory := trajectory_of(segment)) is not None
    ]
    if not at_engine:
        return StragglerPath(before=[], links=[], after=_kinds(path))
    first, last = at_engine[0][0], at_engine[-1][0]
    begun = [
        (i, trajectory)
        for place, (i, trajectory) in enumerate(at_engine)
        if place == 0 or at_engine[place - 1][1] != trajectory
    ]
    ends = [starts[i] for i, _ in begun[1:]] + [starts[last + 1]]
    links = [
        PathLink(
            trajectory=trajectory,
            engine=path[i].lane.removeprefix(_ENGINE),
            start=starts[i],
            end=end,
        )
        for (i, trajectory), end in zip(begun, ends, strict=True)
    ]
    return StragglerPath(before=_kinds(path[:first]), links=links, after=_kinds(path[last + 1 :]))


def _kinds(path: Sequence[Segment]) -> Kinds:
    spent: dict[str, float] = defaultdict(float)
    for segment in path:
        spent[segment.what] += segment.seconds
    return sorted(spent.items(), key=lambda kind: -kind[1])
