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

_LEARNER = (
    ("entropy", "Entropy of the policy", "nats a token"),
    ("kl", "Divergence from the reference", "nats a token"),
    ("clipped", "Share of tokens clipped", ""),
    ("grad_norm", "Gradient norm, before clipping", ""),
    ("lr", "Learning rate", ""),
    ("mismatch", "Mismatch of learner and engine", "nats a token"),
)
"""Metrics of the learner (docs/run-folder.md): name, title, unit."""
_DASHES = ("solid", "dashed", "dotdash")
Points = list[tuple[float, float]]


def _steps(of: Callable[[StepLine], float | None]) -> Callable[[Run], Points]:
    return lambda run: [(s.step + 1, y) for s in run.steps if (y := of(s)) is not None]


_EVALUATIONS: tuple[tuple[str, str, str, Callable[[Run], Points]], ...] = (
    ("Held-out {score}", "steps", "", lambda run: [(e.step, e.mean_reward) for e in run.curve]),
    (
        "Held-out {score} over time",
        "training seconds, without evaluations",
        "",
        lambda run: [(e.train_s, e.mean_reward) for e in run.curve],
    ),
)
_PLOTS: tuple[tuple[str, str, str, Callable[[Run], Points]], ...] = (
    ("Mean reward of candidates", "steps", "", _steps(lambda s: s.reward)),
    ("Mean response length", "steps", "tokens", _steps(lambda s: s.tokens_mean)),
    ("95th percentile of response length", "steps", "tokens", _steps(lambda s: s.tokens_p95)),
)
_SECTION = Section(
    id="curves", title="Learning curves", columns=True,
    see="Held-out rewards should rise, over time earlier if steps are faster. Those in training "
    "rise with them, and lengths show if responses grow or shrink.",
)  # fmt: skip
_OF_THE_LEARNER = Section(
    id="learner", title="Learner", columns=True,
    see="Entropy should fall slowly, not to 0. A share of clipped tokens or a gradient norm that "
    "grows says that steps are too large. The mismatch stays near 1e-6 in float32, and below about "
    "0.1 in bfloat16: more is a bug, or tokens that are too stale.",
)  # fmt: skip


def curves_section(lines: Sequence[Line]) -> Section:
    """Draws all lines, in the order of their colours."""
    section = _SECTION
    if any(len(line.runs) > 1 for line in lines):
        band = " A line is the median over seeds, its band the range from lowest to highest."
        section = msgspec.structs.replace(section, see=section.see + band)
    score = score_of([run for line in lines for run in line.runs])
    evaluations = [(title.format(score=score), x, y, of) for title, x, y, of in _EVALUATIONS]
    made = [figure for entry in (*evaluations, *_PLOTS) if (figure := _figure(lines, *entry))]
    if not made:
        return section.without_data(
            "There is no step or evaluation yet; eval.every=20 evaluates every 20 steps."
        )
    return section.showing(*_legend(lines), *made)


def score_of(runs: Sequence[Run]) -> str:
    """What mean rewards of evaluations are called: accuracy if all of them were 0 or 1."""
    return "accuracy" if all(e.is_accuracy for run in runs for e in run.curve) else "reward"


def learner_section(lines: Sequence[Line]) -> Section:
    """Draws what the learner reports of its steps, as far as a run has it."""
    made = [
        figure
        for name, title, unit in _LEARNER
        if (figure := _figure(lines, title, "steps", unit, _steps(_metric(name))))
    ]
    if not made:
        return _OF_THE_LEARNER.without_data("No step has ended yet.")
    return _OF_THE_LEARNER.showing(*made)


def _metric(name: str) -> Callable[[StepLine], float | None]:
    return lambda step: step.learner.get(name)


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
    heights: set[float] = set()
    for index, line in enumerate(lines):
        seeds = [known for run in line.runs if (known := points(run))]
        if not seeds:
            continue
        found = band(seeds)
        heights.update(found.middle)
        colour, dash = _style(index)
        shared = {"color": colour, "name": f"line {index}"}
        if len(seeds) > 1:
            made.varea(found.x, found.low, found.high, alpha=0.2, **shared)
        drawn.append(made.line(found.x, found.middle, line_width=2, line_dash=dash, **shared))
        if len(found.x) == 1:  # the first evaluation of an unfinished run
            made.scatter(found.x, found.middle, size=7, **shared)
        tips = [("", line.label), (x, "@x{0.[0]}"), (title, "@y{0.[000]}")]
        made.add_tools(HoverTool(renderers=[drawn[-1]], tooltips=tips, visible=False))
    if len(heights) == 1:  # bokeh's own range around a constant is 2, whatever it is
        made.y_range.default_span = abs(heights.pop()) or 1.0
    return made if drawn else None
