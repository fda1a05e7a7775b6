"""What the coordinator costs at 8, 128 and 1,024 engines, all slots in use.

Time is measured inside `Coordinator.handle` alone, on one core: the models around it are
not counted. A frame is one engine's flush: a chunk of every sequence that runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from launch.simulate.scenario import CONFIG, PROMPT_TOKENS, STOP
from pipeline import assembly
from pipeline.configfile import load
from pipeline.coordinator import Coordinator
from pipeline.events import AnyCommand, AnyEvent, Report, Tokens
from pipeline.simulation.costs import DEVICES, SHAPES, engine_cost, learner_cost
from pipeline.simulation.loop import Machines, Simulation
from pipeline.simulation.policy import Policy
from pipeline.simulation.workload import Lengths, Parametric

ENGINES = (8, 128, 1024)
SLOTS = 256
LIMIT = 16_384
CHUNK = 32
_METHOD = ("budget=uniform", "budget.redundancy=1", "selector=first_m", "learner.overlap=group")
_WARM = 1.5  # chunks for each slot before the clock starts: beyond the first placement


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """At one number of engines."""

    engines: int
    groups: int  # in flight
    chunks: int  # measured
    chunks_per_second: float  # everything that `handle` did, over the chunks
    microseconds_per_chunk: float  # of frames in which nothing ended
    microseconds_per_decision: float  # all other time in `handle`, over the selector's decisions


class Timed(Coordinator):
    """Counts what `handle` takes."""

    measuring = False
    seconds = quiet_seconds = 0.0
    chunks = quiet_chunks = decisions = 0

    def handle(self, event: AnyEvent, now: float) -> list[AnyCommand]:
        if not self.measuring:
            return super().handle(event, now)
        begun = time.perf_counter()
        commands = super().handle(event, now)
        took = time.perf_counter() - begun
        self.seconds += took
        if isinstance(event, Tokens):
            self.chunks += len(event.chunks)
            if not any(chunk.finish for chunk in event.chunks):
                self.quiet_seconds += took
                self.quiet_chunks += len(event.chunks)
        self.decisions += sum(
            isinstance(c, Report) and c.what == "decision" and c.fields["verb"] == "Finalize"
            for c in commands
        )
        return commands


def measure(engines: int, chunks: int) -> Cost:
    """All slots of so many engines in use, for so many chunks."""
    need = engines * SLOTS // 8
    prompts = 4 * need
    config = load(
        CONFIG,
        (
            *_METHOD,
            f"step.prompts={need}",
            "step.count=3",
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
        assembly.settings(config, prompts=prompts, stop_tokens=STOP), assembly.seams(config), tokens
    )
    workload = Parametric(Lengths(median=1200, between=0.45, within=0.8), Policy(0.0))
    simulation = Simulation(coordinator, machines, workload, tokens)
    simulation.begin()
    _run_until(
        simulation, lambda: coordinator.core.ledger.sampled > _WARM * CHUNK * engines * SLOTS
    )
    coordinator.measuring = True
    _run_until(simulation, lambda: coordinator.chunks >= chunks)
    return Cost(
        engines=engines,
        groups=len(coordinator.core.groups),
        chunks=coordinator.chunks,
        chunks_per_second=coordinator.chunks / coordinator.seconds,
        microseconds_per_chunk=1e6 * coordinator.quiet_seconds / max(1, coordinator.quiet_chunks),
        microseconds_per_decision=1e6
        * (
            coordinator.seconds
            - coordinator.chunks * coordinator.quiet_seconds / max(1, coordinator.quiet_chunks)
        )
        / max(1, coordinator.decisions),
    )


def _run_until(simulation: Simulation, there: Callable[[], bool]) -> None:
    while not there() and simulation.over is None:
        for _ in range(200):
            if simulation.over is None:
                simulation.step()


def table(costs: list[Cost]) -> str:
    lines = ["| engines | groups in flight | chunks a second | us a chunk | us a decision |"]
    lines.append("|---" * 5 + "|")
    lines += [
        f"| {c.engines} | {c.groups} | {c.chunks_per_second:,.0f} "
        f"| {c.microseconds_per_chunk:.2f} | {c.microseconds_per_decision:.1f} |"
        for c in costs
    ]
    return "\n".join(lines)


def document(costs: list[Cost]) -> dict[str, Any]:
    return {"coordinator": [msgspec.structs.asdict(cost) for cost in costs]}
