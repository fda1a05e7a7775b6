"""Checks what settings ask for beyond their ranges: the model, its weights, trackers, the group.

Reads small files and headers and looks for packages; every way to start or resume a run asks it.
"""

from __future__ import annotations

from collections.abc import Iterator

from launch.preflight.learner import learner_problems
from launch.preflight.weights import weights_problems
from pipeline.config.schema import Config
from pipeline.config.trained import learner_ranks
from pipeline.observability.trackers import tracker_problems
from pipeline.system.private_dirs import group_number


def settings_problems(config: Config) -> list[str]:
    """Returns why a run with these settings cannot start, a line each."""
    learner = learner_problems(config) if learner_ranks(config) else ()
    others = (weights_problems(config), tracker_problems(config.metrics), _group_problems(config))
    return [*learner, *(line for lines in others for line in lines)]


def _group_problems(config: Config) -> Iterator[str]:
    if group := config.metrics.group:
        try:
            group_number(group)
        except PermissionError as error:
            yield f"metrics.group: {error}"
