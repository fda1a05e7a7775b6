"""The machines of a simulated run, in numbers."""

from __future__ import annotations

import msgspec

from pipeline.simulation.hardware import EngineCost, LearnerCost


class Machines(msgspec.Struct, frozen=True, kw_only=True):
    """What the coordinator is given to work with."""

    engines: int
    slots: int
    engine: EngineCost
    learner: LearnerCost
    ranks: int = 1
    chunk_tokens: int = 0  # 0: engines speak only when a response ends
    delay_s: float = 5e-4  # of every message
    reward_s: float = 0.0  # from the end of a response to its reward
    save_s: float = 0.0  # from a cut to its checkpoint
    tick_s: float = 1.0
