"""Curves of a comparison -> one HTML page: accuracy over time, lengths over steps, also by depth.

Lengths are of held-out responses: some methods cut the long training candidates short. Drawing
needs bokeh, an extra (`report`).
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
"""Method -> finished seed -> evaluations."""


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    x: str  # field of EvalLine
    y: str
    unit: str
    tag: str = ""  # kind of prompt, for a field by kind

    def value_of(self, found: EvalLine) -> float:
        """Returns its value for one evaluation."""
        value: Any = getattr(found, self.y)
        return float(value[self.tag] if self.tag else value)


PLOTS = (
    Plot(title="held-out accuracy", x="train_s", y="accuracy", unit="training seconds"),
    Plot(title="mean response, tokens", x="step", y="tokens_mean", unit="step"),
    Plot(title="95th percentile of responses, tokens", x="step", y="tokens_p95", unit="step"),
)


def by_depth(curves: Curves) -> list[Plot]:
    """Returns plots of accuracy and length for each kind of prompt that all evaluations have."""
    known = [set(e.by_tag) & set(e.tokens_by_tag) for c in curves.values() for s in c for e in s]
    tags = sorted(set[str].intersection(*known)) if known else []
    return [
        Plot(title=f"{title}, {tag}", x="step", y=field, unit="step", tag=tag)
        for title, field in (("held-out accuracy", "by_tag"), ("mean response", "tokens_by_tag"))
        for tag in tags
    ]


def available() -> bool:
    """Returns True if bokeh is installed."""
    return importlib.util.find_spec("bokeh") is not None


def plot_points(plot: Plot, seeds: Sequence[Sequence[EvalLine]]) -> list[list[tuple[float, float]]]:
    """Returns the points of a plot for each seed."""
    return [[(getattr(e, plot.x), plot.value_of(e)) for e in seed] for seed in seeds]


def draw(curves: Curves, target: float, out: Path) -> None:
    """Writes the page, which works offline. Raises ImportError without bokeh."""
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
    out.write_text(page, encoding="utf-8")
