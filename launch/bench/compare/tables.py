"""Metrics of cells -> the comparison: lists by seed, medians, ratios to the baseline, a table.

Pure. Ratios are paired by seed, since a seed draws the same prompts in every method. Intervals are
from a percentile bootstrap over seeds, which needs at least three of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from launch.bench.compare.cells import Metrics
from launch.bench.compare.methods import BASELINE

FIGURES = Metrics.__struct_fields__
RATIOS = ("step_seconds", "seconds_to_target", "trained_token_ms")
FEWEST_SEEDS = 3  # for an interval
_DRAWS = 10_000

BySeed = Sequence[Metrics | None]
"""One method's cells in the order of the seeds; None: not done yet, or failed."""


def columns(cells: Mapping[str, BySeed]) -> dict[str, dict[str, list[Any]]]:
    """Returns method -> metric -> values by seed."""
    return {
        name: {
            figure: [getattr(found, figure) if found else None for found in by_seed]
            for figure in FIGURES
        }
        for name, by_seed in cells.items()
    }


def baseline_ratios(
    table: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> dict[str, dict[str, list[float | None]]]:
    """Returns method -> metric -> [baseline over method, low, high]: above 1 is faster.

    Methods may have more seeds than others. A seed counts if both methods have the metric. `low`
    and `high` bound 95%; they are None below `FEWEST_SEEDS` such seeds. Methods and metrics without
    any are left out.
    """
    found: dict[str, dict[str, list[float | None]]] = {}
    for name, metrics in table.items():
        for figure in RATIOS if name != BASELINE and BASELINE in table else ():
            pairs = [
                (base, own)
                for base, own in zip(table[BASELINE][figure], metrics[figure], strict=False)
                if base is not None and own  # no ratio if the target was reached before training
            ]
            if pairs:
                found.setdefault(name, {})[figure] = list(_ratio(pairs))
    return found


def _ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float, float | None, float | None]:
    """Returns the median of the pairs' ratios, and its interval over resampled pairs."""
    ratios = np.array([base / own for base, own in pairs])
    middle = float(np.median(ratios))
    if len(pairs) < FEWEST_SEEDS:
        return middle, None, None
    drawn = np.random.default_rng(0).integers(0, len(pairs), (_DRAWS, len(pairs)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
    return middle, float(low), float(high)


class _Column(msgspec.Struct, frozen=True):
    title: str
    figure: str
    form: str
    scale: float = 1.0


_COLUMNS = (
    _Column("s to target", "seconds_to_target", ".0f"),
    _Column("s a step", "step_seconds", ".2f"),
    _Column("ms a token trained", "trained_token_ms", ".2f"),
    _Column("accuracy", "final_accuracy", ".3f"),
    _Column("deepest", "deep_accuracy", ".3f"),
    _Column("mean tokens", "mean_tokens", ".1f"),
    _Column("sampled per trained", "sampled_per_trained", ".2f"),
    _Column("trained, thousands", "tokens_trained", ".0f", 1e-3),
    _Column("depth", "depth", ".2f"),
    _Column("longest over mean", "tail", ".1f"),
    _Column("bubble engine", "bubble_engine", ".2f"),
    _Column("bubble learner", "bubble_learner", ".2f"),
    _Column("late steps", "late_share", ".1%"),
    _Column("late time", "late_time", ".1%"),
)

_RANGE_AT = 3  # behind the time to the target


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """Makes the table: medians over seeds; in brackets how many times faster than the baseline.

    Args:
        comparison: `methods` from `columns`, `ratios` from `baseline_ratios`, and `paced`, the
            emulated pace in words, if there is one.
    """
    titles = ["method", "seeds", *(column.title for column in _COLUMNS), "accuracy by kind"]
    titles.insert(_RANGE_AT, "its range")
    paced = [f"paced: {comparison['paced']}", ""] if comparison.get("paced") else []
    lines = [*paced, f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, metrics in comparison["methods"].items():
        done = sum(value is not None for value in metrics["final_accuracy"])
        cells = [name, f"{done} of {len(metrics['final_accuracy'])}"]
        for column in _COLUMNS:
            ratio = comparison["ratios"].get(name, {}).get(column.figure)
            cells.append(_cell(column, metrics[column.figure], done) + _bracket(ratio))
        cells.append(_by_kind(metrics["accuracy_by_kind"]))
        cells.insert(_RANGE_AT, _range(metrics["target_range_s"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(by_seed: Sequence[Sequence[float | None] | None]) -> str:
    """The least and the largest time to the target that the evaluations of any seed allow."""
    known = [found for found in by_seed if found is not None]
    low = [low for low, _ in known if low is not None]
    high = [high for _, high in known if high is not None]
    if not known:
        return "-"
    largest = f"{max(high):.0f}" if len(high) == len(known) else "never"
    return f"{min(low):.0f} to {largest}" if low else "never"


def _by_kind(by_seed: Sequence[Mapping[str, float] | None]) -> str:
    """Medians over seeds by kind of prompt, in the order of their names."""
    known = [found for found in by_seed if found is not None]
    kinds = sorted(set[str]().union(*known))
    medians = (statistics.median(f[kind] for f in known if kind in f) for kind in kinds)
    return " ".join(f"{median:.2f}" for median in medians) or "-"


def _cell(column: _Column, by_seed: Sequence[float | None], done: int) -> str:
    known = [value for value in by_seed if value is not None]
    if not known:
        return "never" if done and column.figure == "seconds_to_target" else "-"
    text = format(column.scale * statistics.median(known), column.form)
    return text if len(known) == done else f"{text} in {len(known)}"


def _bracket(ratio: Sequence[float | None] | None) -> str:
    if ratio is None:
        return ""
    middle, low, high = ratio
    interval = "" if low is None or high is None else f", {low:.2f} to {high:.2f}"
    return f" ({middle:.2f}x{interval})"
