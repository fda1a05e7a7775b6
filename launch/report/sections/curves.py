"""Section: held-out accuracy, reward and lengths over training, one line for each setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from bokeh.models import HoverTool
from markupsafe import Markup

from launch.report.bands import band
from launch.report.palette import COLOURS
from launch.report.read_run import Run
from launch.report.run_names import Line
from launch.report.section import Section
from launch.report.style import plot
from launch.run_files.records import StepLine

_DASHES = ("solid", "dashed", "dotdash")
Points = list[tuple[float, float]]


def _steps(of: Callable[[StepLine], float | None]) -> Callable[[Run], Points]:
    return lambda run: [(s.step + 1, y) for s in run.steps if (y := of(s)) is not None]


_PLOTS: tuple[tuple[str, str, str, Callable[[Run], Points]], ...] = (
    ("Held-out accuracy", "steps", "", lambda run: [(e.step, e.accuracy) for e in run.curve]),
    (
        "Held-out accuracy over time",
        "training seconds, without evaluations",
        "",
        lambda run: [(e.train_s, e.accuracy) for e in run.curve],
    ),
    ("Mean reward of candidates", "steps", "", _steps(lambda s: s.reward)),
    ("Mean response length", "steps", "tokens", _steps(lambda s: s.tokens_mean)),
    ("95th percentile of response length", "steps", "tokens", _steps(lambda s: s.tokens_p95)),
)
_SECTION = Section(
    id="curves", title="Learning curves", columns=True,
    see="Accuracy should rise, over time earlier if steps are faster. "
    "Reward rises with it, and lengths show if responses grow or shrink.",
)  # fmt: skip


def curves_section(lines: Sequence[Line]) -> Section:
    """Draws all lines, in the order of their colours."""
    section = _SECTION
    if any(len(line.runs) > 1 for line in lines):
        band = " A line is the median over seeds, its band the range from lowest to highest."
        section = msgspec.structs.replace(section, see=section.see + band)
    made = [figure for entry in _PLOTS if (figure := _figure(lines, *entry))]
    if not made:
        return section.without_data(
            "There is no step or evaluation yet; eval.every=20 evaluates every 20 steps."
        )
    return section.showing(*_legend(lines), *made)


def _style(index: int) -> tuple[str, str]:
    return COLOURS[index % len(COLOURS)], _DASHES[index // len(COLOURS) % len(_DASHES)]


def _legend(lines: Sequence[Line]) -> list[Markup]:
    """Makes one legend for all plots; a click hides a line in each of them."""
    if len(lines) == 1:
        return []
    chips = Markup("").join(
        Markup(
            '<button class="chip" aria-pressed="true" data-line="line {}">'
            '<i style="border-color:{};border-style:{}"></i>{}</button>'
        ).format(i, _style(i)[0], _style(i)[1].replace("dotdash", "dotted"), line.label)
        for i, line in enumerate(lines)
    )
    return [Markup('<div class="chips">{}</div>').format(chips)]


def _figure(
    lines: Sequence[Line], title: str, x: str, y: str, points: Callable[[Run], Points]
) -> Any:
    """Draws one plot; None if no run has a point for it."""
    made = plot(title, x, y)
    drawn: list[Any] = []
    for index, line in enumerate(lines):
        seeds = [known for run in line.runs if (known := points(run))]
        if not seeds:
            continue
        found = band(seeds)
        colour, dash = _style(index)
        shared = {"color": colour, "name": f"line {index}"}
        if len(seeds) > 1:
            made.varea(found.x, found.low, found.high, alpha=0.2, **shared)
        drawn.append(made.line(found.x, found.middle, line_width=2, line_dash=dash, **shared))
        if len(found.x) == 1:  # the first evaluation of an unfinished run
            made.scatter(found.x, found.middle, size=7, **shared)
        tips = [("", line.label), (x, "@x{0.[0]}"), (title, "@y{0.[000]}")]
        made.add_tools(HoverTool(renderers=[drawn[-1]], tooltips=tips, visible=False))
    return made if drawn else None
