"""The section `nodes`: where the processes of a run on several machines are, and how they meet."""

from __future__ import annotations

from typing import Annotated, Literal

from pipeline.config import setting_types as allowed
from pipeline.config.setting_types import Section
from pipeline.plugins.ranges import PositiveFloat, zero_or


class NodesConfig(Section, frozen=True, kw_only=True):
    learners: Literal["first", "spread"] = "first"
    """Ranks of torchrun that are learners: the `first` ones, or `spread` over the machines as
    evenly as possible, each machine's first ranks. The others are engines."""
    interface: allowed.NetworkInterface = ""
    """Network interface (eth1) or address of rank 0's machine where the stage listens for other
    machines. Empty: the address that torchrun gave as MASTER_ADDR."""
    port: Annotated[int, zero_or(1024, 65532)] = 0
    """First of the four TCP ports of rank 0's machine that other machines must reach: control,
    tokens, weights, and where the learner ranks meet. 0: any that are free."""
    expose: bool = False
    """Allow an `interface` that is all of them (0.0.0.0)."""
    patience_s: PositiveFloat = 30.0
    """Seconds that a learner rank may be silent while the link to it is cut. (An engine is lost
    after `timeouts.heartbeat_s`; others continue its work, and it joins again.)"""
