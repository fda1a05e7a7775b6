"""The section `rollouts`: which responses are kept for people to read."""

from __future__ import annotations

from pipeline.config.setting_types import Section
from pipeline.plugins.ranges import NonNegativeInt, PositiveFloat


class RolloutsConfig(Section, frozen=True, kw_only=True):
    every: NonNegativeInt = 1
    """Steps between those whose responses are kept in `rollouts/` of the run's folder, for
    `darts show` and the report; 1: all steps, 0: none."""
    logprobs: bool = False
    """Keep the engine's logprob of every token too: about twice the size."""
    max_gib: PositiveFloat = 1.0
    """Size of all files in `rollouts/` above which the oldest steps are removed, GiB."""
