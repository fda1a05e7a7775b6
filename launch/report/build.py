"""Folders of runs -> the page: reads them, names them, lets each section draw its part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.report.page import render
from launch.report.read_run import Say, read
from launch.report.run_names import lines
from launch.report.sections import (
    budgets,
    comparison,
    critical_path,
    curves,
    gantt,
    latency,
    length_distribution,
    samples,
    waste,
)


def build(paths: Sequence[Path], say: Say) -> str:
    """The page as text. Raises RunError if a folder holds no run.

    Args:
        say: hears of everything that could not be read; the page tells it, too.
    """
    warnings: list[str] = []

    def told(line: str) -> None:
        warnings.append(line)
        say(line)

    runs = [read(path, told) for path in dict.fromkeys(path.absolute() for path in paths)]
    named = lines(runs)
    looks = critical_path.looks(runs)
    sections = [
        comparison.head(named),
        curves.section(named),
        length_distribution.section(named),
        gantt.section(runs, looks),
        critical_path.section(runs, looks),
        latency.section(runs),
        waste.section(runs),
        budgets.section(runs),
        samples.section(runs, samples.held_out(told)),
        comparison.section(named),
    ]
    title = f"darts: {runs[0].name}" if len(runs) == 1 else f"darts: {len(runs)} runs"
    return render(title, sections, warnings)
