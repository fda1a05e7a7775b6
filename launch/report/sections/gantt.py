"""Section: one traced step as bars over time, with its critical path and its straggler.

Bars of slots have no patterns, which are only noise on rows of a few pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import CDSView, ColumnDataSource, CustomJS, HoverTool, Legend, LegendItem, Range1d
from bokeh.models.filters import GroupFilter
from markupsafe import Markup

from launch.report.missing_data import missing_timing, missing_trace
from launch.report.palette import FATES, REST, Look
from launch.report.read_run import Run
from launch.report.section import Section
from launch.report.spans import EVALUATION, OTHER, traced
from launch.report.style import INK, above, fill_style, plot, select
from launch.report.trace_columns import Picture

_COLOURS = {
    **{fate: colour for fate, (colour, _) in FATES.items()},
    EVALUATION: "#c4c4c4",
    OTHER: REST[0],
}
_ELSE = "other parts"
_HEIGHT, _PER_ROW, _HIGHEST = 360, 6, 900  # pixels
_FATES, _WORDS = 3, 2  # columns of the legends, to fit on a phone
_LINE, _HALO = "#000000", "#ffffff"
_SHOW = """
pick.group = cb_obj.value
const view = views[cb_obj.value]
for (const [range, ends] of [[x, view.x], [y, view.y]]) {
  const bounds = [Math.min(...ends), Math.max(...ends)], [start, end] = ends;
  range.setv({ bounds: null });
  range.setv({ start, end, reset_start: start, reset_end: end });
  range.setv({ bounds })
}
axis.ticker.ticks = view.ticks
axis.major_label_overrides = new Map(view.ticks.map((tick, i) => [tick, view.lanes[i]]))
for (const part of document.querySelectorAll("[data-step]"))
  part.hidden = part.dataset.step !== cb_obj.value
"""

_SECTION = Section(
    id="gantt", title="One step",
    see="The thick line is the critical path, on which every second counts; its parts are at the "
    "top. The last trajectory on it is the straggler, named in the picture and below it: after "
    "its end only the rest of the path was left. A trajectory before it on the path usually "
    "had its slot.",
    use="Zoom with Ctrl and the wheel, or by drawing a box. Click in the legend to hide an entry. "
    "The tooltip of a bar says what it is.",
)  # fmt: skip


def gantt_section(runs: Sequence[Run], looks: Mapping[str, Look]) -> Section:
    """Draws the traced steps; `looks` are those of the parts of critical paths."""
    picture = Picture()
    for run in runs:
        whole = traced(run.trace)
        paths = {line.step + 1: line.critical_path for line in run.timing}
        for step in whole.steps:
            name = f"step {step.number}" if len(runs) == 1 else f"{run.name}, step {step.number}"
            picture.add_step(name, whole, step, paths.get(step.number, ()))
    if not picture.names:
        return _SECTION.without_data(missing_trace(runs))
    pick = GroupFilter(column_name="step", group="0")
    made = _drawn(picture, pick, looks)
    notes: list[Markup] = []
    if picture.left_out:
        notes.append(
            Markup('<p class="caption">Left out to limit the size of the page: {}.</p>').format(
                ", ".join(picture.left_out)
            )
        )
    if not picture.path["step"]:
        notes.append(
            Markup('<p class="caption">No critical path. {}</p>').format(missing_timing(runs))
        )
    return _SECTION.showing(*_choice(picture, made, pick), made, *picture.tables, *notes)


def _drawn(picture: Picture, pick: GroupFilter, looks: Mapping[str, Look]) -> Any:
    first = picture.views["0"]
    made = plot(
        "", "seconds since the step's start", "",
        min(_HIGHEST, _HEIGHT + _PER_ROW * picture.rows), name="gantt",
        x_range=Range1d(*first["x"], bounds="auto"), y_range=Range1d(*first["y"], bounds="auto"),
        active_drag="box_zoom", wheel="width",  # lanes and their names stay in view
    )  # fmt: skip
    made.ygrid.visible = False
    made.yaxis.ticker = first["ticks"]
    made.yaxis.major_label_overrides = dict(zip(first["ticks"], first["lanes"], strict=True))
    items = _bars(made, picture, pick)
    parts = _parts(made, picture, pick, looks)
    items.append(_path(made, picture, pick))
    if parts:
        above(made, Legend(items=parts, title="critical path, by what was done:"), _WORDS)
    above(made, Legend(items=[item for item in items if item.renderers]), _FATES)
    return made


def _bars(made: Any, picture: Picture, pick: GroupFilter) -> list[LegendItem]:
    """Draws bars by fate, and decisions as points."""
    items: list[LegendItem] = []
    bars, moments = ColumnDataSource(dict(picture.bars)), ColumnDataSource(dict(picture.moments))
    present = set(picture.bars["kind"])
    for kind, colour in _COLOURS.items():
        if kind not in present:
            continue
        view = CDSView(filter=pick & GroupFilter(column_name="kind", group=kind))
        drawn = made.hbar(
            y="y", height="height", left="start", right="end", source=bars, view=view,
            name=kind, fill_color=colour, line_color=INK, line_width=0.5,
        )  # fmt: skip
        swatch = _key(made, fill_color=colour, line_color=INK)
        items.append(LegendItem(label=kind, renderers=[swatch, drawn]))
        about = [("", "@name, @lane"), ("seconds", "@seconds{0.000}")]
        if kind == OTHER:
            about.append(("", "@why"))
        else:
            of = ("trajectory", "group", "prompt", "tokens", "reward")
            about += [(key, f"@{key}") for key in of]
        made.add_tools(HoverTool(renderers=[drawn], tooltips=about, visible=False))
    points = made.scatter(
        "start", "y", source=moments, view=CDSView(filter=pick), marker="dash", angle=1.5708,
        size=9, color=INK, name="decision",
    )  # fmt: skip
    tips = [("", "@name"), ("group", "@group"), ("at", "@start{0.000} s"), ("", "@why")]
    made.add_tools(HoverTool(renderers=[points], tooltips=tips, visible=False))
    return [*items, *([LegendItem(label="decision", renderers=[points])] if moments.length else [])]


def _parts(
    made: Any, picture: Picture, pick: GroupFilter, looks: Mapping[str, Look]
) -> list[LegendItem]:
    """Draws the parts of critical paths in a row at the top; those without a look of their own
    share an entry in the legend."""
    parts = ColumnDataSource(dict(picture.parts))
    named: dict[str, list[Any]] = {}
    present = set(picture.parts["what"])
    for what, look in looks.items():
        if what not in present:
            continue
        strip = made.hbar(
            y="y", height="height", left="start", right="end", source=parts, line_color=_HALO,
            view=CDSView(filter=pick & GroupFilter(column_name="what", group=what)),
            name=f"part {what}", **fill_style(look),
        )  # fmt: skip
        about = [("", "@what, @lane"), ("seconds", "@seconds{0.000}"), ("", "@detail")]
        made.add_tools(HoverTool(renderers=[strip], tooltips=about, visible=False))
        label = _ELSE if look == REST else what
        if label not in named:
            named[label] = [_key(made, line_color=INK, **fill_style(look))]
        named[label].append(strip)
    return [LegendItem(label=what, renderers=strips) for what, strips in named.items()]


def _key(made: Any, **look: Any) -> Any:
    """Adds an invisible bar: the legend needs one if the chosen step has none of the kind."""
    return made.hbar(y=[math.nan], height=[1.0], left=[0.0], right=[1.0], **look)


def _path(made: Any, picture: Picture, pick: GroupFilter) -> LegendItem:
    """Draws the critical path as a line over the bars, and marks the straggler."""
    path = ColumnDataSource(dict(picture.path))

    def view() -> CDSView:  # each glyph needs its own: a view knows the length of its source
        return CDSView(filter=pick)

    lines = [
        made.multi_line("xs", "ys", source=path, view=view(), line_color=colour, line_width=width,
                        line_join="round", name="critical path")
        for colour, width in ((_HALO, 6), (_LINE, 2.5))
    ]  # fmt: skip
    made.text(
        "x", "y", "text", source=ColumnDataSource(dict(picture.named)), view=view(), x_offset=5,
        text_baseline="middle", text_color=_LINE, text_font_size="11px",
        background_fill_color=_HALO, background_fill_alpha=0.7, padding=2,
    )  # fmt: skip
    late = ColumnDataSource(dict(picture.late))
    made.scatter("x", "y", source=late, view=view(), marker="inverted_triangle", size=13,
                 fill_color=_LINE, line_color=_HALO, line_width=2)  # fmt: skip
    made.text(
        "x", "y", "text", source=late, view=view(), text_align="align", x_offset="shift",
        text_baseline="middle", text_color=_LINE, text_font_style="bold", text_font_size="12px",
        background_fill_color=_HALO, background_fill_alpha=0.9, border_line_color=_LINE, padding=3,
    )  # fmt: skip
    return LegendItem(label="critical path", renderers=lines if picture.path["step"] else [])


def _choice(picture: Picture, made: Any, pick: GroupFilter) -> list[Any]:
    args = {
        "pick": pick, "views": picture.views, "x": made.x_range, "y": made.y_range,
        "axis": made.yaxis[0],
    }  # fmt: skip
    return select("step", picture.names, CustomJS(args=args, code=_SHOW))
