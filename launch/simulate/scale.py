"""Measures the coordinator's cost at 8, 128 and 1,024 engines, all slots in use.

Only time inside `Coordinator.handle` counts, on one core, not the models around it. A frame is one
engine's flush: a chunk of every running sequence.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from launch.simulate import CONFIG
from launch.simulate.scenario import PROMPT_TOKENS, STOP
from pipeline.config.load import load
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import AnyCommand, AnyEvent, GroupTrained, RewardReady, Tokens
from pipeline.hardware.costs import DEVICES, SHAPES, Machines, engine_cost, learner_cost
from pipeline.simulation.loop import Simulation
from pipeline.simulation.policy import Policy
from pipeline.simulation.workload import Lengths, Parametric
from pipeline.stage import build

ENGINES = (8, 128, 1024)
SLOTS = 256
LIMIT = 16_384
CHUNK = 32
METHODS = {
    "first_m": ("budget=uniform", "budget.redundancy=1", "selector=first_m"),
    "dual_end, top-up": (
        "budget=uniform",
        "budget.redundancy=1.5",
        "budget.top_up=fewest",
        "selector.dual_end.long_wait=step",
    ),
}
_CHUNKS = 600_000
_WAVES = 2
"""Candidates of a step, as a multiple of the slots: a waiting one follows each ended response."""
_WARM = 0.15
"""Ended responses for each slot before the measurement starts."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Cost at one number of engines."""

    engines: int
    method: str
    groups: int  # in flight
    chunks: int  # measured
    chunks_per_second: float  # in frames, rewards and answers of the learner
    microseconds_per_chunk: float  # of frames in which nothing ended
    microseconds_per_decision: float  # for an ended response: reward, selector, dispatch
    boundary_share: float  # of all time in `handle`: steps closed and opened, loads, ticks


class Timed(Coordinator):
    """Measures the seconds in `handle`, by kind of event."""

    measuring = False
    quiet_s = ended_s = answers_s = other_s = 0.0
    quiet_chunks = ended_chunks = ended = 0

    def handle(self, event: AnyEvent, now: float) -> list[AnyCommand]:
        begun = time.perf_counter()
        commands = super().handle(event, now)
        took = time.perf_counter() - begun
        ends = sum(chunk.finish != "" for chunk in event.chunks) if isinstance(event, Tokens) else 0
        self.ended += ends
        if not self.measuring:
            return commands
        if ends and isinstance(event, Tokens):
            self.ended_s += took
            self.ended_chunks += len(event.chunks)
        elif isinstance(event, Tokens):
            self.quiet_s += took
            self.quiet_chunks += len(event.chunks)
        elif isinstance(event, RewardReady | GroupTrained):
            self.answers_s += took
        else:
            self.other_s += took
        return commands

    def cost(self, engines: int, method: str, groups: int, ended_before: int) -> Cost:
        chunks = self.quiet_chunks + self.ended_chunks
        per_chunk = self.quiet_s / max(1, self.quiet_chunks)
        decisions_s = self.ended_s - per_chunk * self.ended_chunks + self.answers_s
        return Cost(
            engines=engines,
            method=method,
            groups=groups,
            chunks=chunks,
            chunks_per_second=chunks / (self.quiet_s + self.ended_s + self.answers_s),
            microseconds_per_chunk=1e6 * per_chunk,
            microseconds_per_decision=1e6 * decisions_s / max(1, self.ended - ended_before),
            boundary_share=self.other_s
            / (self.quiet_s + self.ended_s + self.answers_s + self.other_s),
        )


def measure_cost(engines: int, chunks: int, method: str = "first_m") -> Cost:
    """Measures `chunks` chunks with all slots of the engines in use."""
    need = _WAVES * engines * SLOTS // 8
    prompts = 2 * need
    config = load(
        CONFIG,
        (
            *METHODS[method],
            "learner.overlap=group",
            f"step.prompts={need}",
            "step.count=1000",
            f"sampling.max_tokens={LIMIT}",
            "group.size=8",
        ),
    )
    shape, device = SHAPES["qwen2.5-7b"], DEVICES["h200"]
    machines = Machines(
        engines=engines,
        slots=SLOTS,
        engine=engine_cost(shape, device),
        learner=learner_cost(shape, device, engines),
        chunk_tokens=CHUNK,
    )
    tokens = (PROMPT_TOKENS,) * prompts
    coordinator = Timed(
        build.coordinator_settings(config, prompts=prompts, stop_tokens=STOP),
        build.build_plugins(config),
        tokens,
    )
    workload = Parametric(Lengths(median=1200, between=0.45, within=0.8), Policy(0.0))
    simulation = Simulation(coordinator, machines, workload, tokens)
    simulation.begin()
    _run_until(simulation, lambda: coordinator.ended >= _WARM * engines * SLOTS)
    coordinator.measuring, before = True, coordinator.ended
    groups = len(coordinator.core.groups)
    _run_until(simulation, lambda: coordinator.quiet_chunks + coordinator.ended_chunks >= chunks)
    return coordinator.cost(engines, method, groups, before)


def all_sizes(progress: Callable[[str], None]) -> list[Cost]:
    """Measures each method at each number of engines, at least six chunks for every slot."""
    costs: list[Cost] = []
    for method in METHODS:
        for engines in ENGINES:
            costs.append(measure_cost(engines, max(_CHUNKS, 6 * engines * SLOTS), method))
            rate = costs[-1].chunks_per_second
            progress(f"{method}, {engines} engines: {rate:,.0f} chunks a second")
    return costs


def _run_until(simulation: Simulation, there: Callable[[], bool]) -> None:
    while not there() and simulation.over is None:
        for _ in range(50):
            if simulation.over is None:
                simulation.step()


def cost_table(costs: list[Cost]) -> str:
    titles = "method | engines | groups in flight | chunks a second | us a chunk | us a decision"
    lines = [f"| {titles} | at steps' ends |", "|---" * 7 + "|"]
    lines += [
        f"| {c.method} | {c.engines} | {c.groups:,} | {c.chunks_per_second:,.0f} "
        f"| {c.microseconds_per_chunk:.2f} | {c.microseconds_per_decision:.1f} "
        f"| {c.boundary_share:.0%} |"
        for c in costs
    ]
    return "\n".join(lines)


def cost_document(costs: list[Cost]) -> dict[str, Any]:
    return {"coordinator": [msgspec.structs.asdict(cost) for cost in costs]}
