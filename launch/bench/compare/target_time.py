"""When a run reached an accuracy, and how sure that is.

An evaluation is a sample: with 256 responses its accuracy has a standard error of up to .03, which
may make the target look reached one evaluation sooner or later. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launch.run_files.records import EvalLine

_DRAWS = 4000


def seconds_to(curve: Sequence[EvalLine], target: float) -> float | None:
    """Return the training seconds at the first evaluation with this accuracy; None: never."""
    return next((found.train_s for found in curve if found.accuracy >= target), None)


def likely_seconds(
    curve: Sequence[EvalLine], target: float
) -> tuple[float | None, float | None] | None:
    """Return the bounds of 95% of what `seconds_to` would be with other samples of each evaluation.

    The correct ones of n are drawn anew, binomial with the accuracy that was found (a parametric
    bootstrap; samples of one prompt are taken to be independent). A bound is None for never.
    Nothing of a run whose evaluations do not say how many samples they have.
    """
    if not all(found.samples for found in curve):
        return None
    samples = np.array([found.samples for found in curve])
    accuracies = np.array([found.accuracy for found in curve])
    drawn = np.random.default_rng(0).binomial(samples, accuracies, (_DRAWS, len(curve)))
    reached = drawn >= target * samples
    seconds = np.array([found.train_s for found in curve])
    first = np.where(reached.any(1), seconds[reached.argmax(1)], np.inf)
    low, high = np.quantile(first, [0.025, 0.975], method="nearest")
    return _or_never(low), _or_never(high)


def _or_never(seconds: float) -> float | None:
    return float(seconds) if np.isfinite(seconds) else None
