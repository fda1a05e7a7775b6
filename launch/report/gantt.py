"""Section: one traced step as bars over time, its critical path, and who held it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import CDSView, ColumnDataSource, CustomJS, HoverTool, Legend, LegendItem, Range1d
from bokeh.models.filters import GroupFilter
from markupsafe import Markup

from launch.report.palette import FATES, REST, Look
from launch.report.picture import Picture
from launch.report.reading import Run
from launch.report.section import Section
from launch.report.spans import EVALUATION, OTHER, traced
from launch.report.style import INK, legend, plot, select

_KINDS: dict[str, Look] = {**FATES, EVALUATION: ("#c4c4c4", ""), OTHER: REST}
_HEIGHT, _PER_ROW, _HIGHEST = 320, 6, 860  # pixels
_LINE, _HALO = "#000000", "#ffffff"
_SHOW = """
pick.group = cb_obj.value
const view = views[cb_obj.value]
for (const [range, ends] of [[x, view.x], [y, view.y]]) {
  [range.start, range.end] = ends;
  [range.reset_start, range.reset_end] = ends
}
axis.ticker.ticks = view.ticks
axis.major_label_overrides = new Map(view.ticks.map((tick, i) => [tick, view.lanes[i]]))
for (const told of document.querySelectorAll("[data-step]"))
  told.hidden = told.dataset.step !== cb_obj.value
"""


def section(runs: Sequence[Run], looks: Mapping[str, Look]) -> Section:
    """Args: looks: of the parts of critical paths."""
    see = (
        "The straggler that held up the step is named in the picture and below it: its bar is the "
        "long one at whose right end the learner's last work begins. The black line is the "
        "critical path, on which every second counts. Zoom with the wheel or a box; a click on a "
        "fate in the legend hides it."
    )
    picture = Picture()
    for run in runs:
        whole = traced(run.trace)
        paths = {line.step + 1: line.critical_path for line in run.timing}
        for step in whole.steps:
            name = f"step {step.number}" if len(runs) == 1 else f"{run.name}, step {step.number}"
            picture.add(name, whole, step, paths.get(step.number, ()))
    if not picture.names:
        return Section(
            id="gantt", title="One step", see=see,
            missing="No run kept a trace with a whole step; with watch.trace_steps=5 the first "
            "five steps are kept.",
        )  # fmt: skip
    pick = GroupFilter(column_name="step", group="0")
    made = _drawn(picture, pick, looks)
    notes: list[Markup] = []
    if picture.left_out:
        notes.append(
            Markup('<p class="said">Left out, for the size of the page: {}.</p>').format(
                ", ".join(picture.left_out)
            )
        )
    if not picture.path["step"]:
        notes.append(
            Markup('<p class="said">No critical path: it is in runs whose metrics.jsonl has lines '
                   "“timing”, as every new run’s has.</p>")
        )  # fmt: skip
    return Section(
        id="gantt", title="One step", see=see,
        content=[*_choice(picture, made, pick), made, *picture.tables, *notes],
    )  # fmt: skip


def _drawn(picture: Picture, pick: GroupFilter, looks: Mapping[str, Look]) -> Any:
    first = picture.views["0"]
    made = plot(
        "", "seconds since the step's start", "",
        min(_HIGHEST, _HEIGHT + _PER_ROW * picture.rows), name="gantt",
        x_range=Range1d(*first["x"]), y_range=Range1d(*first["y"]), active_scroll="wheel_zoom",
        active_drag="box_zoom",
    )  # fmt: skip
    made.ygrid.visible = False
    made.yaxis.ticker = first["ticks"]
    made.yaxis.major_label_overrides = dict(zip(first["ticks"], first["lanes"], strict=True))
    items = _bars(made, picture, pick)
    items.append(_path(made, picture, pick, looks))
    made.add_layout(Legend(items=[item for item in items if item.renderers]))
    legend(made)
    return made


def _bars(made: Any, picture: Picture, pick: GroupFilter) -> list[LegendItem]:
    """Bars by fate, and decisions as points."""
    items: list[LegendItem] = []
    bars, moments = ColumnDataSource(picture.bars), ColumnDataSource(picture.moments)
    present = set(picture.bars["kind"])
    for kind, (colour, hatch) in _KINDS.items():
        if kind not in present:
            continue
        view = CDSView(filter=pick & GroupFilter(column_name="kind", group=kind))
        drawn = made.hbar(
            y="y", height="height", left="start", right="end", source=bars, view=view,
            name=kind, fill_color=colour, line_color=INK, line_width=0.5,
            hatch_pattern=hatch or None, hatch_alpha=0.45, hatch_scale=6.0,
        )  # fmt: skip
        items.append(LegendItem(label=kind, renderers=[drawn]))
        about = [("", "@name, @lane"), ("seconds", "@seconds{0.000}")]
        about += [(key, f"@{key}") for key in ("trajectory", "group")]
        if kind == OTHER:
            about.append(("", "@why"))
        else:
            about += [(key, f"@{key}") for key in ("prompt", "tokens", "reward")]
        made.add_tools(HoverTool(renderers=[drawn], tooltips=about, visible=False))
    points = made.scatter(
        "start", "y", source=moments, view=CDSView(filter=pick), marker="dash", angle=1.5708,
        size=9, color=INK, name="decision",
    )  # fmt: skip
    told = [("", "@name"), ("group", "@group"), ("at", "@start{0.000} s"), ("", "@why")]
    made.add_tools(HoverTool(renderers=[points], tooltips=told, visible=False))
    return [*items, *([LegendItem(label="decision", renderers=[points])] if moments.length else [])]


def _path(made: Any, picture: Picture, pick: GroupFilter, looks: Mapping[str, Look]) -> LegendItem:
    """The critical path as a line over the bars and as parts at the top, and the straggler."""
    path, parts = ColumnDataSource(picture.path), ColumnDataSource(picture.parts)

    def view() -> CDSView:  # one for each glyph: a view knows how long its source is
        return CDSView(filter=pick)

    lines = [
        made.multi_line("xs", "ys", source=path, view=view(), line_color=colour, line_width=width,
                        line_join="round", name="critical path")
        for colour, width in ((_HALO, 6), (_LINE, 2.5))
    ]  # fmt: skip
    for what, (colour, hatch) in looks.items():
        strip = made.hbar(
            y="y", height="height", left="start", right="end", source=parts, fill_color=colour,
            view=CDSView(filter=pick & GroupFilter(column_name="what", group=what)),
            hatch_pattern=hatch or None, hatch_alpha=0.45, hatch_scale=6.0, line_color=_HALO,
        )  # fmt: skip
        about = [("", "@what, @lane"), ("seconds", "@seconds{0.000}"), ("", "@detail")]
        made.add_tools(HoverTool(renderers=[strip], tooltips=about, visible=False))
    made.text(
        "x", "y", "text", source=ColumnDataSource(picture.named), view=view(), x_offset=5,
        text_baseline="middle", text_color=_LINE, text_font_size="11px",
        background_fill_color=_HALO, background_fill_alpha=0.7, padding=2,
    )  # fmt: skip
    late = ColumnDataSource(picture.late)
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
