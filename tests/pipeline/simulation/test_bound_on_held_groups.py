"""Pilot-Commit in a simulated run whose engines have more slots than its commits fill."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from launch.simulate.scenario import begin_simulation
from pipeline.coordinator.events import AnyCommand, AnyEvent
from pipeline.simulation.loop import Simulation
from pipeline.simulation.policy import Policy
from pipeline.simulation.workload import Parametric
from tests.pipeline.simulation.test_runs_and_trace import TINY

ROOMY = msgspec.structs.replace(TINY, prompts=8, steps=6, engines=4, slots=32)


class MostHeld:
    """Notes how many groups were held at once."""

    def __init__(self) -> None:
        self.simulation: Simulation | None = None
        self.most = 0

    def record_event(self, now: float, event: AnyEvent, commands: Sequence[AnyCommand]) -> None:
        if self.simulation is not None:
            held = self.simulation.coordinator.core.group_index.held
            self.most = max(self.most, held)


def held_and_too_old(hold: float) -> tuple[int, int]:
    """Groups held at once at most, and those dropped because they were held for too long."""
    counted = MostHeld()
    workload = Parametric(ROOMY.lengths, Policy(0.0), seed=ROOMY.seed)
    config = ROOMY.method_config(("recipe=pilot_commit", f"step.hold={hold}"))
    simulation = begin_simulation(config, ROOMY.machines(), workload, observers=(counted,))
    counted.simulation = simulation
    simulation.run()
    assert simulation.coordinator.core.step == ROOMY.steps
    steps = [report for report in simulation.reports if report["what"] == "step"]
    return counted.most, sum(step.get("kinds", {}).get("old", 0) for step in steps)


def test_held_groups_have_a_bound_of_their_own_and_fewer_pilots_grow_too_old():
    free, too_old = held_and_too_old(0)
    bounded, fewer = held_and_too_old(3)
    assert free > 3 * ROOMY.prompts >= bounded
    assert fewer < too_old
