"""Traced steps -> the columns that the picture of a step is drawn from, and the tables below it.

A step has a key; every glyph's rows carry it, so that one choice shows one step. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from launch.report.lines import Segment
from launch.report.section import seconds, table
from launch.report.spans import Bar, Traced, TracedStep
from launch.report.stragglers import Life, Place, lives, placed, straggler

_BARS = 60_000
"""On the page, about 6 MB; further steps are left out, and said to be."""
_LISTED = 8  # trajectories under the picture
_NAMED = 0.12  # of the step: shortest part of the path with its name in it
_BEYOND = 0.02  # of the step: room at both ends

BAR = ("kind", "name", "lane", "y", "height", "start", "end", "seconds", "trajectory", "group",
       "prompt", "tokens", "reward", "why")  # fmt: skip
PATH = ("xs", "ys")
PART = ("what", "detail", "lane", "y", "height", "start", "end", "seconds")
NAMED = ("x", "y", "text")
LATE = ("x", "y", "text", "align", "shift")


class Picture:
    """Columns by glyph; `views` is what the axes show of each step."""

    def __init__(self) -> None:
        self.bars, self.moments = _columns(BAR), _columns(BAR)
        self.path, self.parts = _columns(PATH), _columns(PART)
        self.named, self.late = _columns(NAMED), _columns(LATE)
        self.names: dict[str, str] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.tables: list[Markup] = []
        self.left_out: list[str] = []
        self.rows = 0  # of the deepest

    def add(self, name: str, whole: Traced, step: TracedStep, path: Sequence[Segment]) -> None:
        """One step more, unless the page has enough."""
        if self.names and len(self.bars["step"]) + len(step.bars) > _BARS:
            self.left_out.append(name)
            return
        key = str(len(self.names))
        for columns, some in ((self.bars, step.bars), (self.moments, step.moments)):
            for bar in some:
                _add(columns, step=key, **_of(bar))
        found = lives(step)
        late = straggler(found, path)
        self._mark(key, whole, step, placed(step, path, whole.lanes), late)
        room = step.seconds * _BEYOND
        self.views[key] = {
            "x": [-room, step.seconds + room],
            "y": [whole.depth, -whole.path.height / 2],
            "ticks": [*([whole.path.y] if path else []), *(lane.middle for lane in whole.lanes)],
            "lanes": [*(["critical path"] if path else []), *(lane.name for lane in whole.lanes)],
        }
        self.rows = max(self.rows, sum(len(lane.rows) for lane in whole.lanes))
        self.tables.append(_told(key, step, found, late))
        self.names[key] = name

    def _mark(
        self, key: str, whole: Traced, step: TracedStep, places: list[Place], late: Life | None
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
            if spent > _NAMED * step.seconds:
                _add(self.named, step=key, x=place.start, y=whole.path.y, text=place.what)
        if late is not None:
            right = late.end > step.seconds / 2
            _add(
                self.late, step=key, x=late.end, y=late.row.y,
                text=f"straggler: trajectory {late.trajectory}",
                align="right" if right else "left", shift=-12 if right else 12,
            )  # fmt: skip


def _columns(names: Sequence[str]) -> dict[str, list[Any]]:
    return {"step": [], **{name: [] for name in names}}


def _add(columns: dict[str, list[Any]], **values: Any) -> None:
    for name, column in columns.items():
        column.append(values[name])


def _of(bar: Bar) -> dict[str, Any]:
    args = bar.args
    told = args.get("why") or (f"version {args['version']}" if "version" in args else "")
    return {
        "kind": bar.kind, "name": bar.name, "lane": bar.lane,
        "y": bar.row.y, "height": bar.row.height * 0.9,
        "start": bar.start, "end": bar.end, "seconds": bar.end - bar.start,
        "trajectory": _shown(args.get("trajectory")), "group": _shown(args.get("group")),
        "prompt": _shown(args.get("prompt")), "tokens": _shown(args.get("tokens")),
        "reward": _shown(args.get("reward")), "why": told,
    }  # fmt: skip


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)


def _told(key: str, step: TracedStep, found: Sequence[Life], late: Life | None) -> Markup:
    """A sentence on the straggler and the longest-running trajectories; shown with their step."""
    said = f"Step {step.number} took {seconds(step.seconds)}. "
    if late is None:
        said += "No trajectory that was trained on ended in it."
    else:
        said += (
            f"It waited for trajectory {late.trajectory} of group {late.group} "
            f"({late.tokens:,} tokens on engine {late.engine}), which ended "
            f"{seconds(late.end)} after the step's start"
        )
        said += (
            f"; its group had waited {seconds(late.alone_s)} for it alone." if late.alone_s else "."
        )
    head = ("trajectory", "group", "prompt", "engine", "fate", "tokens", "ran", "ended at",
            "its group waited")  # fmt: skip
    rows = [
        (
            f"{life.trajectory}{' (straggler)' if late and life is late else ''}",
            life.group, life.prompt, life.engine, life.fate, f"{life.tokens:,}",
            seconds(life.running_s), seconds(life.end),
            seconds(life.alone_s) if life.alone_s else "–",
        )
        for life in _listed(found, late)
    ]  # fmt: skip
    longest = table(head, rows, texts=5) if rows else ""
    return Markup('<div data-step="{}"{}><p class="said">{}</p>{}</div>').format(
        key, Markup(" hidden") if key != "0" else "", said, longest
    )


def _listed(found: Sequence[Life], late: Life | None) -> list[Life]:
    """The straggler first, then the longest-running ones."""
    others = [life for life in found if life is not late]
    return [*([late] if late else []), *others][:_LISTED]
