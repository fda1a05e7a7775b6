"""Sections: the runs, and their metrics side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.report.metrics import RunAverages, run_averages
from launch.report.read_run import Run
from launch.report.run_names import Line
from launch.report.section import Section, html_table, number_text, seconds_text
from launch.report.sections.curves import score_of

_HEAD = ("run", "model", "settings that differ", "state", "steps", "seed", "{score} before",
         "after", "seconds in steps", "tokens sampled", "started", "revision")  # fmt: skip
_METRICS: tuple[tuple[str, int, Callable[[Run, RunAverages], float | None]], ...] = (
    ("seconds a step", 2, lambda run, of: of.step_seconds),
    ("{score}", 3, lambda run, of: scores(run)[1]),
    ("sampled per trained", 2, lambda run, of: of.sampled_per_trained),
    ("tokens trained", 0, lambda run, of: of.tokens_trained),
    ("depth", 2, lambda run, of: of.depth),
    ("bubble, engine", 3, lambda run, of: of.bubble_engine),
    ("bubble, learner", 3, lambda run, of: of.bubble_learner),
)


def runs_section(lines: Sequence[Line]) -> Section:
    """Lists the runs, one in each row."""
    rows = [_about(line, run) for line in lines for run in line.runs]
    section = Section(id="runs", title="Runs", see="The runs and their state.")
    score = score_of([run for line in lines for run in line.runs])
    return section.showing(html_table([h.format(score=score) for h in _HEAD], rows, texts=4))


def _about(line: Line, run: Run) -> Sequence[Any]:
    before, after = scores(run)
    wanted = run.settings.get("step", {}).get("count", "?")
    spent = run.result.get("train_seconds", sum(step.seconds for step in run.steps))
    tokens = run.result.get("tokens_reported_by_engines", _sampled(run))
    return (
        run.name,
        Path(str(run.settings.get("model", "–"))).name,
        ", ".join(f"{key}={value}" for key, value in line.differs.items()) or "–",
        _state(run),
        f"{run.result.get('steps', len(run.steps))} of {wanted}",
        run.seed,
        number_text(before, 3),
        number_text(after, 3),
        seconds_text(spent),
        f"{tokens:,}",
        run.about.get("started", "–"),
        run.about.get("revision", "–"),
    )


def _state(run: Run) -> str:
    if run.result:
        return "finished"
    if run.running:
        return "running"
    if not run.resumable:
        return "unfinished"
    done = run.steps[-1].step + 1 if run.steps else 0
    return f"stopped (Ctrl-C?) at step {done}; resume with darts train --resume"


def scores(run: Run) -> tuple[float | None, float | None]:
    """Returns the mean reward of the first and the last evaluation so far."""
    return (run.curve[0].mean_reward, run.curve[-1].mean_reward) if run.curve else (None, None)


def _sampled(run: Run) -> int:
    return run.steps[-1].ledger.get("sampled", 0) if run.steps else 0


_SECTION = Section(
    id="comparison", title="Comparison",
    see="In brackets: the value divided by that of the first run. Below 1 is better for seconds, "
    "sampled per trained and bubbles (idle shares). If a run is fast only because it trains on "
    "less or shorter text, tokens trained and depth show it.",
)  # fmt: skip


def comparison_section(lines: Sequence[Line]) -> Section:
    """Compares the metrics of all runs with those of the first."""
    runs = [run for line in lines for run in line.runs if run.steps]
    if len(runs) < 2:
        return _SECTION.without_data(
            "A comparison needs two runs with steps: darts report RUN RUN ..."
        )
    values = [[of(run, run_averages(run.steps)) for _, _, of in _METRICS] for run in runs]
    rows = [
        (
            run.name,
            *(
                _ratio(value, base, digits)
                for value, base, (_, digits, _) in zip(row, values[0], _METRICS, strict=True)
            ),
        )
        for run, row in zip(runs, values, strict=True)
    ]
    names = [name.format(score=score_of(runs)) for name, _, _ in _METRICS]
    return _SECTION.showing(html_table(["run", *names], rows))


def _ratio(value: float | None, base: float | None, digits: int) -> str:
    ratio = f" ({value / base:.2f}x)" if value is not None and base else ""
    return number_text(value, digits) + ratio
