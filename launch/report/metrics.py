"""The steps of a run -> the metrics by which runs are compared. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from launch.run_files.records import StepLine


class RunAverages(msgspec.Struct, frozen=True, kw_only=True):
    """Averages and sums over the steps of one run."""

    step_seconds: float  # mean over the steps
    trained_token_ms: float | None  # milliseconds of a step for each token trained on
    sampled_per_trained: float | None
    tokens_trained: int
    depth: float | None  # mean over the steps
    tail: float | None  # longest over mean candidate of a step, mean over the steps
    bubble_engine: float | None  # mean, weighted by seconds of generation
    bubble_learner: float | None  # mean, weighted by seconds of the steps


def run_averages(steps: Sequence[StepLine]) -> RunAverages:
    """Averages the steps of a run, at least one."""
    trained = sum(s.tokens_trained for s in steps)
    depths = [s.depth for s in steps if s.depth is not None]
    tails = [s.tokens_max / s.tokens_mean for s in steps if s.tokens_max and s.tokens_mean]
    seconds = sum(s.seconds for s in steps)
    return RunAverages(
        step_seconds=seconds / len(steps),
        trained_token_ms=1e3 * seconds / trained if trained else None,
        sampled_per_trained=sum(s.tokens_sampled for s in steps) / trained if trained else None,
        tokens_trained=trained,
        depth=sum(depths) / len(depths) if depths else None,
        tail=sum(tails) / len(tails) if tails else None,
        bubble_engine=weighted_mean([(s.bubble_engine, s.generation_s) for s in steps]),
        bubble_learner=weighted_mean([(s.bubble_learner, s.seconds) for s in steps]),
    )


def weighted_mean(shares: Sequence[tuple[float | None, float]]) -> float | None:
    """Returns the weighted mean of the known shares; None if there is none."""
    known = [(share, weight) for share, weight in shares if share is not None]
    total = sum(weight for _, weight in known)
    return sum(share * weight for share, weight in known) / total if total > 0 else None
