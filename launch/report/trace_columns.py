"""Traced steps -> the columns for the picture of a step, and the tables below it.

Each row carries the key of its step, so that one choice shows one step. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from launch.report.captions import step_caption
from launch.report.spans import Bar, Traced, TracedStep
from launch.report.straggler_path import straggler_path
from launch.report.stragglers import Life, PathSpan, path_spans, step_trajectories
from launch.run_files.records import Segment
from pipeline.wire.messages import CLOSE, CLOSE_WITH_PASSES

_BARS = 60_000
"""Largest number of bars on the page, about 6 MB; the page names the steps that are left out."""
_WIDTH, _LETTER = 230, 7  # pixels: the picture on a phone, and a letter in it
_GROUPS = 6  # shown in a tooltip
_OF_STEPS = (CLOSE, CLOSE_WITH_PASSES, "optimizer, publish", "rejected")
"""Work of a learner rank for a step, not for groups; the last two in the stage's words."""
_BEYOND = 0.02  # room at both ends, as a share of the step

BAR = ("kind", "name", "lane", "y", "height", "start", "end", "seconds", "trajectory", "group",
       "prompt", "tokens", "reward", "why")  # fmt: skip
PATH = ("xs", "ys")
PART = ("what", "detail", "lane", "y", "height", "start", "end", "seconds")
NAMED = ("x", "y", "text")
LATE = ("x", "y", "text", "align", "shift")


class Picture:
    """Columns by glyph; `views` holds the ranges of the axes for each step."""

    def __init__(self) -> None:
        self.bars, self.moments = _columns(BAR), _columns(BAR)
        self.path, self.parts = _columns(PATH), _columns(PART)
        self.named, self.late = _columns(NAMED), _columns(LATE)
        self.names: dict[str, str] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.tables: list[Markup] = []
        self.left_out: list[str] = []
        self.rows = 0  # rows of the tallest step

    def add_step(self, name: str, whole: Traced, step: TracedStep, path: Sequence[Segment]) -> None:
        """Adds a step, unless the page has enough bars."""
        if self.names and len(self.bars["step"]) + len(step.bars) > _BARS:
            self.left_out.append(name)
            return
        key = str(len(self.names))
        for columns, some in ((self.bars, step.bars), (self.moments, step.moments)):
            for bar in some:
                _add(columns, step=key, **_of(bar))
        caption = step_caption(
            step, step_trajectories(step), straggler_path(path) if path else None
        )
        self._mark(key, whole, step, path_spans(step, path, whole.lanes), caption.straggler)
        room = step.seconds * _BEYOND
        self.views[key] = {
            "x": [-room, step.seconds + room],
            "y": [whole.depth, -whole.path.height / 2],
            "ticks": [*([whole.path.y] if path else []), *(lane.middle for lane in whole.lanes)],
            "lanes": [*(["critical path"] if path else []), *(lane.name for lane in whole.lanes)],
        }
        self.rows = max(self.rows, sum(len(lane.rows) for lane in whole.lanes))
        self.tables.append(
            Markup('<div data-step="{}"{}>{}</div>').format(
                key, Markup(" hidden") if self.names else "", caption.html
            )
        )
        self.names[key] = name

    def _mark(
        self, key: str, whole: Traced, step: TracedStep, places: list[PathSpan], late: Life | None
    ) -> None:
        if places:
            xs = [x for place in places for x in (place.start, place.end)]
            _add(self.path, step=key, xs=xs, ys=[p.row.y for p in places for _ in range(2)])
        for place in places:
            spent = place.end - place.start
            _add(
                self.parts, step=key, what=place.what, detail=place.detail, lane=place.lane,
                y=whole.path.y, height=whole.path.height, start=place.start, end=place.end,
                seconds=spent,
            )  # fmt: skip
            if spent / step.seconds * _WIDTH > _LETTER * (1 + len(place.what)):
                _add(self.named, step=key, x=place.start, y=whole.path.y, text=place.what)
        if late is not None:
            right = late.end > step.seconds / 2
            _add(
                self.late, step=key, x=late.end, y=late.row.y,
                text=f"{'straggler' if places else 'last trained'}: {late.trajectory}",
                align="right" if right else "left", shift=-12 if right else 12,
            )  # fmt: skip


def _columns(names: Sequence[str]) -> dict[str, list[Any]]:
    return {"step": [], **{name: [] for name in names}}


def _add(columns: dict[str, list[Any]], **values: Any) -> None:
    for name, column in columns.items():
        column.append(values[name])


def _of(bar: Bar) -> dict[str, Any]:
    args = bar.args
    return {
        "kind": bar.kind, "name": bar.name, "lane": bar.lane,
        "y": bar.row.y, "height": bar.row.height * 0.9,
        "start": bar.start, "end": bar.end, "seconds": bar.end - bar.start,
        "trajectory": _shown(args.get("trajectory")), "group": _shown(args.get("group")),
        "prompt": _shown(args.get("prompt")), "tokens": _shown(args.get("tokens")),
        "reward": _shown(args.get("reward")), "why": _why(bar),
    }  # fmt: skip


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)


def _why(bar: Bar) -> str:
    """Returns the reason, version, step or groups of a bar, for its tooltip."""
    args = bar.args
    reasons = [args["why"]] if "why" in args else []
    if "version" in args:
        reasons.append(f"version {args['version']}")
    if of := args.get("of"):
        more = f" and {len(of) - _GROUPS} more" if len(of) > _GROUPS else ""
        reasons.append(
            f"step {of[0] + 1}" if bar.name in _OF_STEPS
            else f"group{'s' if len(of) > 1 else ''} {', '.join(map(str, of[:_GROUPS]))}{more}"
        )  # fmt: skip
    if not bar.slot:
        reasons += [f"{key} {args[key]}" for key in ("trajectory", "reward") if key in args]
    return "; ".join(reasons)
