"""Speed-ups that a small numpy model gave for one CPU engine, before there was a simulator.

Test data: each is the speed-up of a step over synchronous rollout without overlap. The whole table,
with what the simulator finds, is in docs/experiments.md (2026-11-25).
"""

from __future__ import annotations

from launch.simulate.methods_at_scale import METHODS
from launch.simulate.scenario import Scenario
from pipeline.hardware.costs import EngineCost, LearnerCost
from pipeline.simulation.workload import Lengths

_POINTS = ((1, 6.4e-3), (8, 6.8e-3), (32, 8.2e-3), (64, 10.7e-3), (128, 21e-3))


def small(learner: float = 0.3, within: float = 0.8) -> Scenario:
    """One CPU engine; `learner` is its cost in engine seconds a token at full batch."""
    return Scenario(
        engine=EngineCost(points=_POINTS),
        learner=LearnerCost(train_s=learner * 10.7e-3 / 64),
        engines=1,
        slots=64,
        lengths=Lengths(median=20, between=0.4, within=within),
        limit=160,
        prompts=12,
        steps=80,
    )


def _first_8(redundancy: float) -> tuple[str, ...]:
    return (
        "budget=uniform",
        f"budget.redundancy={redundancy}",
        "selector=first_m",
        "learner.overlap=group",
    )


ESTIMATES: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("sync, streamed backward", METHODS["sync_streamed"], 1.10),
    ("first 8 of 10", _first_8(1.25), 1.65),
    ("first 8 of 12", _first_8(1.5), 1.83),
    ("first 8 of 16", _first_8(2), 1.97),
    ("dual-end, waits for all 12", METHODS["darts_published"], 0.91),
    ("dual-end, step barrier, 12", METHODS["darts_barrier"], 1.59),
    ("tail batching, streamed", METHODS["tail_batching"], 1.61),
    ("top-up 8 to 16", METHODS["top_up"], 2.11),
    ("top-up and quorum", METHODS["top_up_quorum"], 2.25),
    ("k = 1, all", METHODS["k1"], 1.87),
)
"""Method, its settings, its estimate."""
