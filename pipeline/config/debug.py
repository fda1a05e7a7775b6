"""The section `debug`: what helps to find a fault, or to test, and costs time or disk."""

from __future__ import annotations

from pipeline.config.setting_types import Section


class DebugConfig(Section, frozen=True, kw_only=True):
    record: bool = False
    """Write every event that the coordinator hears, and what it answers, into `recordings/` of the
    run's folder, for `darts replay`: about 10 bytes for each token sampled."""
    ordered: bool = False
    """Hand events to the coordinator in rounds of a fixed order, by a logical clock, so that the
    same configuration gives the same run again. For tests: every round waits for the slowest."""
