"""Section: the seconds of each step's critical path by kind of work, against the lower bound."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import ColumnDataSource

from launch.report.missing_data import missing_timing
from launch.report.palette import PARTS, REST, Look
from launch.report.read_run import Run
from launch.report.section import Section
from launch.report.style import chosen, legend, plot, stacked

_ELSE = "other"


def path_looks(runs: Sequence[Run]) -> dict[str, Look]:
    """Returns the looks of the parts of critical paths, the longest first; the rest is grey."""
    whole: Counter[str] = Counter()
    for run in runs:
        for line in run.timing:
            for segment in line.critical_path:
                whole[segment.what] += segment.seconds  # type: ignore[reportArgumentType]
    order = [what for what, _ in whole.most_common()]
    return {what: PARTS[i] if i < len(PARTS) else REST for i, what in enumerate(order)}


_SECTION = Section(
    id="seconds", title="Where the time went",
    see="A bar shows the seconds of a step along its critical path. The part above the lower bound "
    "(the longer of generation and learning) is what an ideal overlap of both would save.",
)  # fmt: skip


def critical_path_section(runs: Sequence[Run], looks: Mapping[str, Look]) -> Section:
    """Draws the critical path of every step; `looks` come from `path_looks`."""
    known = [run for run in runs if any(line.critical_path for line in run.timing)]
    if not known:
        return _SECTION.without_data(missing_timing(runs))
    parts = {what: look for what, look in looks.items() if look != REST}
    if len(parts) < len(looks):
        parts[_ELSE] = REST
    columns: dict[str, list[Any]] = defaultdict(list)
    for index, run in enumerate(known):
        bounds = {step.step: max(step.generation_s, step.learning_s) for step in run.steps}
        for line in run.timing:
            spent = dict.fromkeys(parts, 0.0)
            for segment in line.critical_path:
                spent[segment.what if segment.what in parts else _ELSE] += segment.seconds
            for key, value in (
                ("run", str(index)), ("step", line.step + 1), ("from", line.step + 0.55),
                ("to", line.step + 1.45), ("bound", bounds.get(line.step)),
                *spent.items(),
            ):  # fmt: skip
                columns[key].append(value)
    source = ColumnDataSource(dict(columns))
    choice, view = chosen(known)
    made = plot("", "steps", "seconds", 340)
    stacked(made, source, view, list(parts), parts)
    for colour, width in (("#000000", 5), ("#ffffff", 2)):
        made.segment(
            x0="from", x1="to", y0="bound", y1="bound", source=source, view=view,
            line_color=colour, line_width=width, legend_label="lower bound",
        )  # fmt: skip
    legend(made, columns=2)
    return _SECTION.showing(*choice, made)
