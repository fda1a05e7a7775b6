"""Section: tokens of each step by fate, and tokens sampled for each one trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from bokeh.models import ColumnDataSource
from markupsafe import Markup

from launch.report.palette import FATES
from launch.report.read_run import Run
from launch.report.section import Section, html_table
from launch.report.style import chosen, legend, plot, stacked
from launch.run_files.records import StepLine

_COUNTED = 1e-3
"""Smallest share of all tokens for a fate to be in the legend."""
_OF_FOREIGN = ("members", "tokens")

_SECTION = Section(
    id="waste", title="Where the tokens went", columns=True,
    see="The lowest part of a bar, “trained”, was learned from; the rest was sampled for "
    "nothing. Much “redundant” means over-sampling, much “aborted” means stopping late.",
)  # fmt: skip


def waste_section(runs: Sequence[Run]) -> Section:
    """Draws the accounts of the ledger, step by step."""
    known = [run for run in runs if run.steps]
    if not known:
        return _SECTION.without_data("No step has ended yet.")
    columns: dict[str, list[Any]] = {key: [] for key in ("run", "step", "ratio", *FATES)}
    for index, run in enumerate(known):
        for before, now in itertools.pairwise([None, *run.steps]):
            assert now is not None
            columns["run"].append(str(index))
            columns["step"].append(now.step + 1)
            columns["ratio"].append(now.sampled_per_trained)
            for fate, tokens in tokens_by_fate(before, now).items():
                columns[fate].append(tokens)
    whole = sum(sum(columns[fate]) for fate in FATES) or 1
    kinds = [fate for fate in FATES if sum(columns[fate]) > _COUNTED * whole]
    source = ColumnDataSource(dict(columns))
    choice, view = chosen(known)
    bars = plot("Tokens sampled, by fate", "steps", "tokens")
    stacked(bars, source, view, kinds, FATES)
    legend(bars)
    ratio = plot("Tokens sampled for each one trained on", "steps", "", x_range=bars.x_range)
    ratio.scatter("step", "ratio", source=source, view=view, size=6, color=FATES["trained"][0])
    ratio.y_range.start = 0
    return _SECTION.showing(*choice, bars, ratio, *_foreign(known))


def _foreign(runs: Sequence[Run]) -> Iterator[Markup]:
    """Yields a table of what was trained on beside the tokens sampled, if there was anything."""
    rows = [
        (run.name, *(sum(step.foreign.get(key, 0) for step in run.steps) for key in _OF_FOREIGN))
        for run in runs
        if any(step.foreign for step in run.steps)
    ]
    if rows:
        yield html_table(("run", "responses trained on, not sampled here", "their tokens"), rows)


def tokens_by_fate(before: StepLine | None, now: StepLine) -> dict[str, int]:
    """Returns the tokens of one step by fate; the accounts count from the start of the run."""
    old = before.ledger if before is not None else {}
    return {fate: max(0, now.ledger.get(fate, 0) - old.get(fate, 0)) for fate in FATES}
