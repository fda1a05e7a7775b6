"""Checks what settings ask for beyond their ranges: the model's kind and weights, and the trackers.

Reads small files and headers and looks for packages; every way to start or resume a run asks it.
"""

from __future__ import annotations

from launch.preflight.learner import learner_problems
from launch.preflight.weights import weights_problems
from pipeline.config.schema import Config
from pipeline.config.trained import learner_ranks
from pipeline.observability.trackers import tracker_problems


def settings_problems(config: Config) -> list[str]:
    """Returns why a run with these settings cannot start, a line each."""
    learner = learner_problems(config) if learner_ranks(config) else ()
    return [*learner, *weights_problems(config), *tracker_problems(config.metrics)]
