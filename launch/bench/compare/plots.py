"""Curves of a comparison -> one HTML page: accuracy over time, lengths over steps, both by depth
of the prompt, seeds as bands.

Lengths are those of held-out responses: among training candidates the long ones are
cut short by some methods and not by others. Drawing needs bokeh, an extra (`report`).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launch.report.bands import band
from launch.report.palette import COLOURS
from launch.run_files.records import EvalLine

Curves = Mapping[str, Sequence[Sequence[EvalLine]]]
"""Method -> finished seed -> its evaluations."""


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    x: str  # field of EvalLine
    y: str
    unit: str
    tag: str = ""  # of a field that is by kind of prompt

    def value_of(self, found: EvalLine) -> float:
        """What it shows of one evaluation."""
        value: Any = getattr(found, self.y)
        return float(value[self.tag] if self.tag else value)


PLOTS = (
    Plot(title="held-out accuracy", x="train_s", y="accuracy", unit="training seconds"),
    Plot(title="mean response, tokens", x="step", y="tokens_mean", unit="step"),
    Plot(title="95th percentile of responses, tokens", x="step", y="tokens_p95", unit="step"),
)


def by_depth(curves: Curves) -> list[Plot]:
    """Accuracy and length for each kind of held-out prompt that every evaluation names."""
    known = [set(e.by_tag) & set(e.tokens_by_tag) for c in curves.values() for s in c for e in s]
    tags = sorted(set[str].intersection(*known)) if known else []
    return [
        Plot(title=f"{title}, {tag}", x="step", y=field, unit="step", tag=tag)
        for title, field in (("held-out accuracy", "by_tag"), ("mean response", "tokens_by_tag"))
        for tag in tags
    ]


def available() -> bool:
    """Whether bokeh is installed."""
    return importlib.util.find_spec("bokeh") is not None


def plot_points(plot: Plot, seeds: Sequence[Sequence[EvalLine]]) -> list[list[tuple[float, float]]]:
    """Of each seed, what a plot shows of it."""
    return [[(getattr(e, plot.x), plot.value_of(e)) for e in seed] for seed in seeds]


def draw(curves: Curves, target: float, out: Path) -> None:
    """Write the page; needs no network to be looked at. Raises ImportError without bokeh."""
    plotting: Any = importlib.import_module("bokeh.plotting")
    layouts: Any = importlib.import_module("bokeh.layouts")
    embed: Any = importlib.import_module("bokeh.embed")
    resources: Any = importlib.import_module("bokeh.resources")
    models: Any = importlib.import_module("bokeh.models")
    metrics: list[Any] = []
    for plot in (*PLOTS, *by_depth(curves)):
        figure = plotting.figure(
            title=plot.title, x_axis_label=plot.unit, width=900, height=360,
            sizing_mode="scale_width", lod_threshold=None,
        )  # fmt: skip
        for index, (name, seeds) in enumerate((n, s) for n, s in curves.items() if s):
            colour = COLOURS[index % len(COLOURS)]
            found = band(plot_points(plot, seeds))
            shared = {"color": colour, "legend_label": name}
            figure.varea(found.x, found.low, found.high, alpha=0.15, **shared)
            figure.line(found.x, found.middle, line_width=2, **shared)
        if plot.y == "accuracy":
            figure.add_layout(models.Span(location=target, dimension="width", line_dash="dashed"))
        figure.legend.click_policy = "hide"
        metrics.append(figure)
    page = embed.file_html(layouts.column(*metrics), resources.INLINE, "darts bench compare")
    out.write_text(page)
