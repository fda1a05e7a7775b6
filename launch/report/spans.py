"""A trace of a run -> the bars of each traced step, on rows, with times from the step's start.

The inverse of `pipeline.observability.chrome_trace`, as far as a picture needs it: spans of
unknown names are kept as other work. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec

from launch.report.palette import FATES
from pipeline.observability.chrome_trace import PATH

OTHER, EVALUATION = "other work", "evaluation"
_THICK = 18
"""A lane is at least this fraction (1/18) of all slots high, so that its name has room."""
_GAP = 0.6  # between lanes, as a share of that height


class Row(msgspec.Struct, frozen=True):
    """Position of one row of bars: its middle, counted downwards, and its height."""

    y: float
    height: float


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the trace."""

    name: str
    rows: dict[int, Row]  # row of the trace -> position

    @property
    def middle(self) -> float:
        places = [row.y for row in self.rows.values()]
        return (min(places) + max(places)) / 2


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A span; times in seconds since the step's start."""

    lane: str
    row: Row
    kind: str  # a fate, or OTHER or EVALUATION
    name: str
    start: float
    end: float
    args: dict[str, Any]

    @property
    def trajectory(self) -> int | None:
        return self.args.get("trajectory")

    @property
    def slot(self) -> bool:
        """True for an engine's slot: a trajectory that was decoded."""
        return "finish" in self.args


class TracedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a trace."""

    number: int  # from 1
    seconds: float
    bars: list[Bar]
    moments: list[Bar]  # decisions and handovers: too short for bars


class Traced(msgspec.Struct, frozen=True, kw_only=True):
    """A whole trace."""

    path: Row  # at the top, for the critical path
    lanes: list[Lane]
    depth: float  # of the picture, downwards
    steps: list[TracedStep]


def traced(document: dict[str, Any]) -> Traced:
    """Reads steps and bars from a Chrome trace; timing lines hold its critical path."""
    events = document.get("traceEvents", [])
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    spans = [e for e in events if e["ph"] == "X" and e["pid"] != PATH]
    bounds = [e for e in spans if names[e["pid"]] == "stage" and e["name"].startswith("step ")]
    work = [e for e in spans if names[e["pid"]] != "stage" or not e["name"].startswith("step ")]
    path, lanes, depth = _lanes(names, work)
    return Traced(
        path=path,
        lanes=list(lanes.values()),
        depth=depth,
        steps=[
            _step(bound, _within(work, bound), lanes)
            for bound in sorted(bounds, key=lambda e: e["ts"])
        ],
    )


def _lanes(names: dict[int, str], work: list[dict[str, Any]]) -> tuple[Row, dict[int, Lane], float]:
    """Stacks critical path, stage, learner, rewards and engines; lanes of few rows are thicker."""
    used: dict[int, set[int]] = defaultdict(set)
    for event in work:
        used[event["pid"]].add(event["tid"])
    order = {"stage": 0, "learner": 1, "rewards": 2}
    slots = sum(len(rows) for pid, rows in used.items() if names[pid].startswith("engine"))
    thick = max(1.0, slots / _THICK)
    lanes: dict[int, Lane] = {}
    at = thick * (1 + _GAP)
    for pid in sorted(used, key=lambda pid: (order.get(names[pid].split()[0], 3), pid)):
        engine = names[pid].startswith("engine")
        height = 1.0 if engine else thick / len(used[pid])
        rows: dict[int, Row] = {}
        for row in sorted(used[pid]):
            tall = max(height, thick / 3) if engine and row == 0 else height  # weights
            rows[row] = Row(at + tall / 2, tall)
            at += tall
        lanes[pid] = Lane(name=names[pid], rows=rows)
        at += thick * _GAP
    return Row(thick / 2, thick), lanes, at


def _within(work: list[dict[str, Any]], bound: dict[str, Any]) -> Iterator[dict[str, Any]]:
    start, end = bound["ts"], bound["ts"] + bound["dur"]
    return (e for e in work if e["ts"] < end and e["ts"] + e["dur"] > start)


def _step(
    bound: dict[str, Any], events: Iterator[dict[str, Any]], lanes: dict[int, Lane]
) -> TracedStep:
    bars: list[Bar] = []
    moments: list[Bar] = []
    for event in events:
        args = event.get("args", {})
        lane = lanes[event["pid"]]
        start = (event["ts"] - bound["ts"]) / 1e6
        bar = Bar(
            lane=lane.name,
            row=lane.rows[event["tid"]],
            kind=_kind(event["name"], args),
            name=event["name"],
            start=start,
            end=start + event["dur"] / 1e6,
            args=args,
        )
        (moments if lane.name == "stage" else bars).append(bar)
    return TracedStep(
        number=int(bound["name"].removeprefix("step ")),
        seconds=bound["dur"] / 1e6,
        bars=bars,
        moments=moments,
    )


def _kind(name: str, args: dict[str, Any]) -> str:
    if "finish" not in args:
        return OTHER
    return EVALUATION if name == "eval" else name if name in FATES else OTHER
