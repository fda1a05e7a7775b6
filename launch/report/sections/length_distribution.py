"""Section: response lengths, and how they change while the policy learns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from bokeh.models import ColumnDataSource, NumeralTickFormatter

from launch.report.read_run import Ints, Members
from launch.report.run_names import Line
from launch.report.section import Section
from launch.report.style import INK, chosen_line, plot

Floats = npt.NDArray[np.float64]

NO_GROUPS = "No training group has ended yet, or decisions.jsonl is missing."
_RIDGES = 8  # bins of training steps
_GRID = 160  # points in a ridge
_OVERLAP = 1.6  # height of the highest ridge, in distances between ridges
_NAMES = 0.18  # room for the names left of the ridges, as a share of their width
_NARROWEST = 0.06  # kernel width in ln(length), so that whole tokens are not separate peaks
_COLOUR = "#4477aa"
_TICKS = [digit * 10.0**power for power in range(-2, 7) for digit in (1, 2, 5)]

_SECTION = Section(
    id="lengths", title="Response lengths", columns=True,
    see="Each ridge is the distribution of response lengths in one part of the training, the "
    "first on top. Ridges that move left mean shorter responses; a long right end is the tail "
    "that steps wait for. Responses that were stopped early are left out.",
)  # fmt: skip


def lengths_section(lines: Sequence[Line]) -> Section:
    """Draws lengths, and lengths over the median of their group."""
    known = [line for line in lines if any(len(r.members.tokens_N) for r in line.runs)]
    if not known:
        return _SECTION.without_data(NO_GROUPS)
    data = [
        {f"{key} {of}": column for of, values in _MEASURES.items()
         for key, column in _ridges([run.members for run in line.runs], values).items()}
        for line in known
    ]  # fmt: skip
    choice, source = chosen_line(known, data)
    made = [
        _figure(source, "All responses, by training steps", "tokens", "length"),
        _figure(
            source, "Within a prompt, by training steps", "length over the group's median", "ratio"
        ),
    ]
    return _SECTION.showing(*choice, *made)


def _figure(source: ColumnDataSource, title: str, x: str, of: str) -> Any:
    made = plot(title, x, "", 380, x_axis_type="log")
    made.xaxis.ticker = _TICKS
    made.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    made.patches(
        f"xs {of}", f"ys {of}", source=source, fill_color=_COLOUR, fill_alpha=0.55,
        line_color=_COLOUR, line_width=1.5,
    )  # fmt: skip
    made.text(
        f"at {of}", f"base {of}", f"name {of}", source=source, text_color=INK,
        text_baseline="bottom", text_font_size="11px",
    )  # fmt: skip
    made.yaxis.visible = False
    made.ygrid.visible = False
    return made


def _lengths(members: Members) -> Floats:
    return members.tokens_N.astype(float)


def _ratios(members: Members) -> Floats:
    """Returns each member's length over its group's median length."""
    return members.tokens_N / np.maximum(1.0, medians(members)[members.group_N])


def medians(members: Members) -> Floats:
    """Returns the median length of each group; 0 for a group without ended members."""
    order = np.lexsort((members.tokens_N, members.group_N))
    tokens = members.tokens_N[order].astype(float)
    counts = np.bincount(members.group_N, minlength=len(members.step_G))
    first = np.cumsum(counts) - counts
    some = counts > 0
    found = np.zeros(len(counts))
    low, high = first + (counts - 1) // 2, first + counts // 2
    found[some] = (tokens[low[some]] + tokens[high[some]]) / 2
    return found


_MEASURES = {"length": _lengths, "ratio": _ratios}


def _ridges(runs: Sequence[Members], of: Any) -> dict[str, Any]:
    """Returns the columns of one setting's ridges, all seeds together; the lowest is last."""
    steps: Ints = np.concatenate([m.step_G[m.group_N] for m in runs])
    values = np.log(np.maximum(np.concatenate([of(m) for m in runs]), 1e-2))
    edges = np.unique(np.linspace(0, steps.max() + 1, _RIDGES + 1).astype(int))
    grid = np.linspace(values.min() - 0.2, values.max() + 0.2, _GRID)
    shapes: list[tuple[str, Floats]] = []
    for low, high in itertools.pairwise(edges.tolist()):
        here = values[(steps >= low) & (steps < high)]
        name = f"{high}" if high - low == 1 else f"{low + 1}–{high}"
        shapes.append((name, _density(here, grid) if len(here) else np.zeros(_GRID)))
    scale = _OVERLAP / max(shape.max() for _, shape in shapes)
    x = np.exp(grid)
    bases = [float(len(shapes) - 1 - i) for i in range(len(shapes))]
    return {
        "xs": [np.concatenate([x, x[::-1]]) for _ in shapes],
        "ys": [
            np.concatenate([base + shape * scale, np.full(_GRID, base)])
            for base, (_, shape) in zip(bases, shapes, strict=True)
        ],
        "at": [float(np.exp(grid[0] - _NAMES * (grid[-1] - grid[0])))] * len(shapes),
        "base": bases,
        "name": [name for name, _ in shapes],
    }


def _density(values: Floats, grid: Floats) -> Floats:
    """Estimates a density with Gaussian kernels, their width by Silverman's rule."""
    step = grid[1] - grid[0]
    width = max(_NARROWEST, 1.06 * float(values.std()) * len(values) ** -0.2)
    reach = int(np.ceil(4 * width / step))
    kernel = np.exp(-np.square(np.arange(-reach, reach + 1) * step / width) / 2)
    counts = np.bincount(np.rint((values - grid[0]) / step).astype(int), minlength=len(grid))
    spread = np.convolve(counts, kernel / kernel.sum())
    return spread[reach : reach + len(grid)] / (len(values) * step)
