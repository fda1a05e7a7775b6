"""What a throw-away model said before there was a simulator, against the simulator.

The model was numpy: lengths lognormal, an engine by its decode curve, no coordinator. Two
settings of it: one small engine (64 slots, 12 prompts x 8, its curve measured on a CPU) and
7B on 8 to 64 H20 (128 prompts x 8, limit 8,192). Figures are speed-ups a step over
synchronous rollout without overlap. A cell agrees within a tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from launch.simulate.methods_at_scale import METHODS, SYNC
from launch.simulate.scenario import Metrics, Scenario, run
from pipeline.simulation.hardware import EngineCost, LearnerCost
from pipeline.simulation.workload import Lengths

AGREES = 0.1
_CPU_POINTS = ((1, 6.4e-3), (8, 6.8e-3), (32, 8.2e-3), (64, 10.7e-3), (128, 21e-3))
_STREAMED = "learner.overlap=group"


def small(learner: float = 0.3, within: float = 0.8) -> Scenario:
    """One CPU engine; the learner in engine seconds a token at full batch (r)."""
    return Scenario(
        engine=EngineCost(points=_CPU_POINTS),
        learner=LearnerCost(train_s=learner * 10.7e-3 / 64),
        engines=1,
        slots=64,
        lengths=Lengths(median=20, between=0.4, within=within),
        limit=160,
        prompts=12,
        steps=80,
    )


def large(engines: int) -> Scenario:
    """7B on H20; the learner costs .3 of the engines' time at full batch."""
    scenario = Scenario(engines=engines, steps=20, forwards=0)
    cost = scenario.engine_cost()
    full_s = (cost.table(128)[128] + cost.kv_s * 128 * 1500) / 128 / engines
    learner = LearnerCost(train_s=0.3 * full_s)
    engine = msgspec.structs.replace(cost, load_s=0.0, prefill_s=0.0)
    return msgspec.structs.replace(scenario, learner=learner, engine=engine)


def _of(redundancy: float, *more: str) -> tuple[str, ...]:
    return ("budget=uniform", f"budget.redundancy={redundancy}", *more, _STREAMED)


SAID: tuple[tuple[str, tuple[str, ...], tuple[float, float, float, float]], ...] = (
    # method, overrides, said for: small, 8, 32 and 64 engines
    ("sync, streamed backward", METHODS["sync_streamed"], (1.10, 1.12, 1.04, 1.02)),
    ("first 8 of 10", _of(1.25, "selector=first_m"), (1.65, 1.16, 1.11, 1.09)),
    ("first 8 of 12", _of(1.5, "selector=first_m"), (1.83, 1.35, 1.41, 1.40)),
    ("first 8 of 16", _of(2, "selector=first_m"), (1.97, 1.45, 1.77, 1.82)),
    ("dual-end, waits for all 12", METHODS["darts_published"], (0.91, 0.89, 1.00, 1.00)),
    ("dual-end, step barrier, 12", METHODS["darts_barrier"], (1.59, 1.16, 1.36, 1.38)),
    ("tail batching, streamed", METHODS["tail_batching"], (1.61, 1.57, 1.95, 1.97)),
    ("top-up 8 to 16", METHODS["top_up"], (2.11, 1.52, 1.88, 2.01)),
    ("top-up and quorum", METHODS["top_up_quorum"], (2.25, 1.73, 2.38, 2.53)),
    ("k = 1, all", METHODS["k1"], (1.87, 1.83, 2.05, 2.03)),
)


def fitting(scenario: Scenario, overrides: Sequence[str]) -> tuple[str, ...]:
    """With a quarter of the scenario's prompts in reserve, where there is a reserve."""
    own = f"step.reserve={scenario.prompts // 4}"
    return tuple(own if o.startswith("step.reserve=") else o for o in overrides)


def _rows(progress: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    scenarios = {"one CPU engine": small(), **{f"{n} H20": large(n) for n in (8, 32, 64)}}
    for number, (where, scenario) in enumerate(scenarios.items()):
        base, _ = run(scenario, SYNC)
        for method, overrides, said in SAID:
            own, _ = run(scenario, fitting(scenario, overrides))
            row = _row(f"{method}; {where}", said[number], base.step_s / own.step_s, own)
            progress(f"{row['statement']}: said {row['said']}, found {row['found']:.2f}")
            yield row


def _row(statement: str, said: float, found: float, own: Metrics) -> dict[str, Any]:
    return {
        "statement": statement,
        "said": said,
        "found": found,
        "agrees": abs(found / said - 1.0) <= AGREES,
        "depth": own.depth,
        "sampled_per_trained": own.sampled_per_trained,
    }


def confirm(progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every cell, said and found."""
    rows = list(_rows(progress))
    several = msgspec.structs.replace(  # epochs of few prompts, unlike each other
        small(),
        dataset=48,
        lengths=Lengths(median=20, between=0.4, within=0.8, uneven=0.4),
    )
    base, _ = run(several, SYNC)
    for name, overrides, said in (
        ("variance budget of 12 with no spare, first 8 (slower than uniform)",
         ("budget=length_variance", "budget.mean=1.5", "selector=first_m", _STREAMED), 1.44),
        ("the same candidates, uniform", _of(1.5, "selector=first_m"), 1.83),
        ("variance budget of 12 with two spare",
         ("budget=length_variance", "budget.mean=1.5", "budget.spare=2", "selector=first_m",
          _STREAMED), 1.80),
        ("a hard confidence gate of 20%, 12",
         _of(1.5, "selector.concise_confident.depth=none",
             "selector.concise_confident.slack=4"), 1.28),
    ):  # fmt: skip
        own, _ = run(several, overrides)
        rows.append(_row(f"{name}; one CPU engine", said, base.step_s / own.step_s, own))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| statement | said | found | agrees | depth | sampled per trained |"]
    lines.append("|---" * 6 + "|")
    lines += [
        f"| {r['statement']} | {r['said']:.2f} | {r['found']:.2f} "
        f"| {'yes' if r['agrees'] else 'no'} | {r['depth']:.1f} | {r['sampled_per_trained']:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)
