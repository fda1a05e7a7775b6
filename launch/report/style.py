"""Look of the plots on white and on black: choices, stacked bars, legends.

page.js gives texts the page's colours; the colours here are legible on both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bokeh.models import (
    CDSView,
    ColumnDataSource,
    CustomJS,
    InlineStyleSheet,
    Select,
    WheelZoomTool,
)
from bokeh.models.filters import GroupFilter
from bokeh.plotting import figure

from launch.report.palette import Look
from launch.report.read_run import Run
from launch.report.run_names import Line

INK = "#7a7a7a"
_GRID_ALPHA = 0.25
_TOOLS = "@media print { :host { display: none; } }"
_CHOICE = """
.bk-input { color: var(--ink); background: var(--paper); border-color: var(--rule);
            font: inherit; max-width: 100%; }
label { color: var(--soft); font: inherit; }
"""


def plot(
    title: str,
    x: str,
    y: str,
    height: int = 300,
    *,
    wheel: Literal["width", "height", "both"] = "both",
    **more: Any,
) -> Any:
    """Makes an empty figure that fills the width of the page.

    Args:
        wheel: dimensions that the mouse wheel zooms.
    """
    options: dict[str, Any] = {
        "title": title,
        "x_axis_label": x,
        "y_axis_label": y,
        "height": height,
        "min_width": 240,  # of a phone
        "sizing_mode": "stretch_width",
        "lod_threshold": None,  # else bokeh hides points while dragging
        "tools": "pan,box_zoom,save,reset",
        "active_drag": None,  # on a phone a finger scrolls the page
        **more,
    }
    made: Any = figure(**options)
    # Without Ctrl the wheel scrolls the page, wherever the cursor is.
    zoom = WheelZoomTool(dimensions=wheel, modifiers="ctrl", maintain_focus=False)
    made.add_tools(zoom)
    made.toolbar.active_scroll = zoom
    made.toolbar.logo = None
    made.toolbar.stylesheets = [InlineStyleSheet(css=_TOOLS)]
    made.toolbar.autohide = False
    made.background_fill_alpha = made.border_fill_alpha = 0.0
    made.outline_line_color = None
    made.title.text_color = INK
    for axis in made.axis:
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.axis_line_color = axis.major_tick_line_color = INK
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
    made.grid.grid_line_color = INK
    made.grid.grid_line_alpha = _GRID_ALPHA
    return made


def legend(made: Any, columns: int = 3) -> None:
    """Moves the legend out of the plot; a click hides what it names."""
    above(made, made.legend[0], columns)


def above(made: Any, own: Any, columns: int) -> None:
    """Puts a legend above the plot; a click hides what it names."""
    own.click_policy = "hide"
    own.ncols = columns  # fits on a phone
    own.orientation = "horizontal"
    own.background_fill_alpha = 0.0
    own.border_line_color = None
    own.label_text_color = own.title_text_color = INK
    own.title_text_font_size = "12px"
    own.title_text_font_style = "normal"
    own.label_text_font_size = "12px"
    own.spacing, own.padding, own.margin = 6, 2, 4
    own.glyph_width = own.glyph_height = 16
    made.add_layout(own, "above")


def fill_style(look: Look) -> dict[str, Any]:
    """Returns the fill of a bar that is tall enough for a pattern."""
    colour, hatch = look
    return {
        "fill_color": colour, "hatch_pattern": hatch or None, "hatch_alpha": 0.45,
        "hatch_scale": 6.0,
    }  # fmt: skip


def stacked(
    made: Any,
    source: ColumnDataSource,
    view: CDSView,
    kinds: Sequence[str],
    looks: Mapping[str, Look],
) -> None:
    """Draws stacked bars over `step`, one part for each kind."""
    bars = made.vbar_stack(
        list(kinds), x="step", width=0.9, source=source, view=view,
        legend_label=[k.replace("_", " ") for k in kinds], fill_color=[looks[k][0] for k in kinds],
    )  # fmt: skip
    for bar, kind in zip(bars, kinds, strict=True):
        bar.name = kind
        bar.glyph.update(line_color=INK, line_width=0.5, **fill_style(looks[kind]))


def chosen(runs: Sequence[Run]) -> tuple[list[Select], CDSView]:
    """Makes a choice of the run (none for a single run), and a view of the chosen run's rows."""
    pick = GroupFilter(column_name="run", group="0")
    names = {str(i): run.name for i, run in enumerate(runs)}
    show = CustomJS(args={"pick": pick}, code="pick.group = cb_obj.value")
    return select("run", names, show), CDSView(filter=pick)


def chosen_line(
    lines: Sequence[Line], data: Sequence[dict[str, Any]]
) -> tuple[list[Select], ColumnDataSource]:
    """Makes a choice of the line, and a source whose data it replaces."""
    source = ColumnDataSource(data[0])
    code = "source.data = data[Number(cb_obj.value)]"
    names = {str(i): line.label for i, line in enumerate(lines)}
    return select("run", names, CustomJS(args={"source": source, "data": data}, code=code)), source


def select(title: str, options: dict[str, str], show: CustomJS) -> list[Select]:
    """Makes a choice; [] if there are fewer than two options."""
    if len(options) < 2:
        return []
    choice = Select(
        title=title, value=next(iter(options)), options=list(options.items()), width=300,
        stylesheets=[InlineStyleSheet(css=_CHOICE)], name=f"choice of {title}",
    )  # fmt: skip
    choice.js_on_change("value", show)
    return [choice]
