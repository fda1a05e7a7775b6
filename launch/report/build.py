"""Folders of runs -> the page: reads and names the runs, and collects the sections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from launch.report.page import render
from launch.report.read_run import Run, Say, read_run
from launch.report.run_names import run_lines
from launch.report.section import Section
from launch.report.sections import (
    budgets,
    comparison,
    critical_path,
    curves,
    gantt,
    latency,
    length_distribution,
    rollouts,
    samples,
    selection_bias,
    waste,
)

_DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError)
"""What a section raises where a file of a run does not say what a run writes."""


def build_page(paths: Sequence[Path], say: Say) -> str:
    """Returns the page as text. Raises RunError if a folder holds no run.

    Args:
        say: called with each thing that could not be read; the page lists them too.
    """
    warnings: list[str] = []

    def warn(line: str) -> None:
        warnings.append(line)
        say(line)

    runs = [read_run(path, warn) for path in dict.fromkeys(path.absolute() for path in paths)]
    named = run_lines(runs)
    looks = critical_path.path_looks(runs)
    makers: dict[str, Callable[[], Section]] = {
        "runs": lambda: comparison.runs_section(named),
        "curves": lambda: curves.curves_section(named),
        "learner": lambda: curves.learner_section(named),
        "lengths": lambda: length_distribution.lengths_section(named),
        "steps": lambda: gantt.gantt_section(runs, looks),
        "critical path": lambda: critical_path.critical_path_section(runs, looks),
        "latency": lambda: latency.latency_section(runs),
        "waste": lambda: waste.waste_section(runs),
        "budgets": lambda: budgets.budgets_section(runs),
        "selection bias": lambda: selection_bias.bias_section(runs),
        "rollouts": lambda: rollouts.rollouts_section(runs, warn),
        "samples": lambda: samples.samples_section(runs),
        "comparison": lambda: comparison.comparison_section(named),
    }
    sections: list[Section] = []
    for name, make in makers.items():
        try:
            sections.append(make())
        except _DAMAGE as error:  # a damaged trace, say: the other sections are worth having
            why = f"the runs' files do not say what a run writes ({error!r:.200})"
            warn(f"section {name} is left out: {why}")
    title = f"darts: {runs[0].name}" if len(runs) == 1 else f"darts: {len(runs)} runs"
    modelled = [line for run in runs for line in _modelled(run)]
    return render(title, sections, warnings, modelled)


def _modelled(run: Run) -> Iterator[str]:
    if run.steps and (pace := run.steps[-1].paced):
        real = "tokens, learning and decisions are real"
        yield f"paced: {pace} ({run.name}): times are emulated; {real}"
    if simulated := run.about.get("simulated"):
        what = "times, lengths and rewards are modelled; decisions are real"
        yield f"simulated: {simulated} ({run.name}): {what}"
