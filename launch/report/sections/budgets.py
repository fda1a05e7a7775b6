"""Section: the candidates of each prompt against how much its lengths vary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bokeh.models import ColorBar, ColumnDataSource, LinearColorMapper

from launch.report.read_run import Members, Run
from launch.report.section import Section
from launch.report.sections.length_distribution import NO_GROUPS, Floats
from launch.report.style import INK, chosen, plot

_POINTS = 6000  # of all runs together; more would be slow and not visible
_JITTER = 0.3  # candidates
_PALETTE = (
    "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55",
)  # fmt: skip

_SECTION = Section(
    id="budgets", title="Budgets against length variance",
    see="Each point is a group: candidates over the standard deviation of its response lengths. "
    "Budgets that follow length variance (budget.length_variance) rise to the right, a uniform "
    "budget is flat. Points are moved up or down a little so that they do not overlap.",
)  # fmt: skip


def budgets_section(runs: Sequence[Run]) -> Section:
    """Draws one point for each group."""
    known = [run for run in runs if len(run.members.tokens_N)]
    if not known:
        return _SECTION.without_data(NO_GROUPS)
    parts = [_points(run.members, _POINTS // len(known)) for run in known]
    names = [np.full(len(part[0]), str(i)) for i, part in enumerate(parts)]
    deviation, candidates, step = (np.concatenate(column) for column in zip(*parts, strict=True))
    source = ColumnDataSource(
        {
            "run": np.concatenate(names).tolist(), "deviation": deviation,
            "candidates": candidates, "step": step,
        }
    )  # fmt: skip
    choice, view = chosen(known)
    made = plot(
        "", "deviation of the group's lengths, tokens", "candidates", 340,
        tooltips=[("step", "@step"), ("deviation", "@deviation{0.0}")],
    )  # fmt: skip
    colour = LinearColorMapper(palette=_PALETTE, low=1, high=int(step.max()))
    made.scatter(
        "deviation", "candidates", source=source, view=view, size=5, line_color=INK,
        line_alpha=0.5, fill_alpha=0.8, fill_color={"field": "step", "transform": colour},
    )  # fmt: skip
    made.y_range.start = 0
    bar = ColorBar(
        color_mapper=colour, title="step", width=10, background_fill_alpha=0.0,
        title_text_color=INK, major_label_text_color=INK,
    )  # fmt: skip
    made.add_layout(bar, "right")
    return _SECTION.showing(*choice, made)


def _points(members: Members, most: int) -> tuple[Floats, Floats, Floats]:
    """Returns deviation of lengths, candidates (moved a little) and step (from 1) of at most `most`
    groups, evenly over the run."""
    counts = np.bincount(members.group_N, minlength=len(members.step_G))
    some = np.maximum(1, counts)
    mean = np.bincount(members.group_N, members.tokens_N, len(counts)) / some
    off = members.tokens_N - mean[members.group_N]
    deviation = np.sqrt(np.bincount(members.group_N, off * off, len(counts)) / some)
    of = np.flatnonzero(counts > 1)
    of = of[:: max(1, -(-len(of) // most))]
    moved = np.random.default_rng(0).uniform(-_JITTER, _JITTER, len(of))
    return (
        deviation[of].astype(np.float64),
        members.candidates_G[of] + moved,
        (members.step_G[of] + 1).astype(np.float64),
    )
