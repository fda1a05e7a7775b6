"""Section: percentiles of latencies, over the run and in its first and last tenth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from launch.report.metrics import weighted_mean
from launch.report.missing_data import missing_timing
from launch.report.read_run import Run
from launch.report.section import Section, folded, html_table, seconds_text
from launch.run_files.records import TimingLine
from pipeline.observability.timing import MEANINGS

_HEAD = ("latency", "count", "p50", "p95", "p99", "max", "p95, first tenth", "p95, last tenth",
         "change")  # fmt: skip

_SECTION = Section(
    id="latency", title="Latencies",
    see="Steps wait for tails: p99 far above p50. A last tenth above the first is a slow-down. "
    "Percentiles are taken within steps; shown is their mean, weighted by count.",
)  # fmt: skip


def latency_section(runs: Sequence[Run]) -> Section:
    """Makes a table for each run."""
    known = [run for run in runs if any(line.percentiles for line in run.timing)]
    if not known:
        return _SECTION.without_data(missing_timing(runs))
    return _SECTION.showing(
        *folded((run.name, html_table(_HEAD, _rows(run.timing))) for run in known)
    )


def _rows(timing: Sequence[TimingLine]) -> list[Sequence[Any]]:
    tenth = max(1, len(timing) // 10)
    found: list[Sequence[Any]] = []
    for name in dict.fromkeys(name for line in timing for name in line.percentiles):
        of = [line.percentiles[name] for line in timing if name in line.percentiles]
        begin, end = (_mean(some, name, "p95") for some in (timing[:tenth], timing[-tenth:]))
        change = f"{end / begin - 1:+.0%}" if begin and end is not None else "–"
        found.append(
            (
                Markup('{}<br><span class="soft">{}</span>').format(
                    name.removesuffix("_s").replace("_", " "), MEANINGS.get(name, "")
                ),
                f"{sum(p.count for p in of):,}",
                *(seconds_text(_mean(timing, name, at)) for at in ("p50", "p95", "p99")),
                seconds_text(max(p.max for p in of)),
                seconds_text(begin),
                seconds_text(end),
                change,
            )
        )
    return found


def _mean(timing: Sequence[TimingLine], name: str, at: str) -> float | None:
    found = [line.percentiles[name] for line in timing if name in line.percentiles]
    return weighted_mean([(getattr(p, at), p.count) for p in found])
