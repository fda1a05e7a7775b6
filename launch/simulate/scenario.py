"""One simulated run: a configuration, hardware, and a population of prompts.

Plug-ins and sizes are those of a real run; models of hardware replace engines and learner.
Everything follows from the configuration's seed.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from launch.simulate import CONFIG
from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import TrainGroup
from pipeline.coordinator.timeouts import Timeouts
from pipeline.hardware.costs import (
    DEVICES,
    SHAPES,
    EngineCost,
    LearnerCost,
    Machines,
    engine_cost,
    learner_cost,
)
from pipeline.simulation.loop import Learns, Observer, Simulation
from pipeline.simulation.policy import Lesson, Policy
from pipeline.simulation.workload import Lengths, Parametric, Workload
from pipeline.stage import build

PROMPTS = 17_000
"""Prompts of the data set, as many as in DAPO-MATH."""
PROMPT_TOKENS = 200
STOP = frozenset({1})
_MEASURED = 4000  # responses drawn to measure a policy
_ENDS = 4  # kinds of end that a message names


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is simulated except the method.

    `forwards`: passes for old and reference logprobs beside training; `streamed`: these run on
    chunks of responses that are still generated, for any `learner.overlap`.
    """

    shape: str = "qwen2.5-7b"
    device: str = "h20"
    engines: int = 32
    ranks: int = 1  # they share the learner's GPUs
    gpus_of_engine: int = 1
    slots: int = 256
    learner_gpus: int = 32
    learner_factor: float = 1.0  # multiplies the learner's seconds
    engine: EngineCost | None = None  # instead of the cost by shape and device
    learner: LearnerCost | None = None
    forwards: int = 1
    streamed: bool = False
    lengths: Lengths = Lengths(median=1200, between=0.45, within=0.8)
    limit: int = 8192
    dataset: int = PROMPTS
    prompts: int = 128
    size: int = 8
    steps: int = 20
    rate: float = 0.0  # learning rate of the policy; 0: lengths do not change
    seed: int = 0

    def engine_cost(self) -> EngineCost:
        shape, device = SHAPES[self.shape], DEVICES[self.device]
        return self.engine or engine_cost(shape, device, self.gpus_of_engine)

    def learner_cost(self) -> LearnerCost:
        shape, device = SHAPES[self.shape], DEVICES[self.device]
        cost = self.learner or learner_cost(
            shape, device, self.learner_gpus / self.ranks, self.forwards
        )
        return msgspec.structs.replace(
            cost,
            train_s=cost.train_s * self.learner_factor,
            forward_s=cost.forward_s * self.learner_factor,
        )

    def machines(self) -> Machines:
        return Machines(
            engines=self.engines,
            slots=self.slots,
            engine=self.engine_cost(),
            learner=self.learner_cost(),
            ranks=self.ranks,
            chunk_tokens=256,
        )

    def method_config(self, overrides: Sequence[str]) -> Config:
        """Makes a method's configuration for this scenario. Raises ConfigError."""
        own = (
            f"sampling.max_tokens={self.limit}",
            f"step.prompts={self.prompts}",
            f"step.count={self.steps}",
            f"group.size={self.size}",
            f"seed={self.seed}",
        )
        return load(CONFIG, (*own, *overrides))


class NothingTrained(RuntimeError):
    """No step trained on anything; the message says how the groups ended."""


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics by which runs are compared; means over steps."""

    step_s: float  # from one applied step to the next
    generation_s: float
    sampled_per_trained: float
    trained_tokens: float  # a step
    depth: float
    bubble_engine: float
    bubble_learner: float
    load: float  # ended responses of a step, for each engine
    accuracy_before: float  # expected, of the policy on the training prompts
    accuracy_after: float
    tokens_before: float  # mean length of its responses, after the limit
    tokens_after: float


def run_method(
    scenario: Scenario, overrides: Sequence[str], observers: Sequence[Observer] = ()
) -> tuple[Metrics, Simulation]:
    """Runs a method in a scenario to its end."""
    config = scenario.method_config(overrides)
    policy = Policy(scenario.rate)
    workload = Parametric(scenario.lengths, policy, seed=scenario.seed)
    before = worth(workload, scenario.limit, 0, scenario.dataset)
    simulation = begin_simulation(
        config,
        scenario.machines(),
        workload,
        learn=teacher(workload),
        observers=observers,
        streamed=scenario.streamed,
        prompt_tokens=(PROMPT_TOKENS,) * scenario.dataset,
    )
    simulation.run()
    after = worth(workload, scenario.limit, simulation.version, scenario.dataset)
    return run_metrics(simulation, scenario, before, after), simulation


def begin_simulation(
    config: Config,
    machines: Machines,
    workload: Workload,
    *,
    learn: Learns | None = None,
    observers: Sequence[Observer] = (),
    streamed: bool = False,
    prompt_tokens: Sequence[int] = (PROMPT_TOKENS,) * PROMPTS,
) -> Simulation:
    """Begins a run; `run()` plays it."""
    numbers = build.coordinator_settings(config, prompts=len(prompt_tokens), stop_tokens=STOP)
    if streamed:
        numbers = msgspec.structs.replace(numbers, stream=True)
    # No other timeouts: modelled engines may report only at the end of a response. One turn: the
    # environment's replies are not modelled.
    numbers = msgspec.structs.replace(
        numbers,
        ranks=machines.ranks,
        engines=machines.engines,
        limits=Timeouts(close_s=config.learner.close_s),
        turns=0,
    )
    # Texts of variants and solutions are not modelled: each is as long as its prompt.
    variants = dict.fromkeys(config.data.variants, prompt_tokens)
    solutions = [bytes(4 * n) for n in prompt_tokens] if config.data.solution else []
    coordinator = Coordinator(
        numbers,
        build.build_plugins(config),
        prompt_tokens,
        variants=variants,
        solutions=solutions,
    )
    simulation = Simulation(coordinator, machines, workload, prompt_tokens, learn, observers)
    simulation.begin()
    return simulation


def teacher(workload: Parametric) -> Learns:
    """Updates the workload's policy with the trained groups."""

    def learn(before: int, after: int, groups: Sequence[TrainGroup]) -> None:
        lessons = (
            Lesson(
                kind=workload.kind("train", group.prompt),
                tokens=len(member.response) // 4,
                truncated=member.truncated,
                reward=member.reward,
                advantage=member.advantage,
                weight=member.weight,
            )
            for group in groups
            for member in group.members
        )
        workload.policy.learn(before, after, lessons)

    return learn


def worth(
    workload: Parametric, limit: int, version: int, dataset: int = PROMPTS
) -> tuple[float, float]:
    """Returns (accuracy, mean tokens) of a policy version, by the same draws for every version."""
    rng = random.Random(0)
    right = tokens = 0.0
    for prompt in range(_MEASURED):
        length, chance = workload.policy.respond(
            workload.kind("train", prompt % dataset), rng.gauss(0, 1), version
        )
        right += chance if length <= limit else 0.0
        tokens += min(length, limit)
    return right / _MEASURED, tokens / _MEASURED


def run_metrics(
    simulation: Simulation,
    scenario: Scenario,
    before: tuple[float, float],
    after: tuple[float, float],
) -> Metrics:
    """Computes the metrics of a finished run.

    Raises: RuntimeError if it ended with an error; NothingTrained.
    """
    steps = simulation.of("step")
    if simulation.over is None or simulation.over.error or not steps:
        raise RuntimeError(f"the simulated run ended: {simulation.over}")
    if not any(step["tokens_trained"] for step in steps):
        raise NothingTrained(_fates(steps))
    placed = max(1, scenario.engines)
    return Metrics(
        step_s=steps[-1]["time"] / len(steps),
        generation_s=_mean(steps, "generation_s"),
        sampled_per_trained=sum(s["tokens_sampled"] for s in steps)
        / sum(s["tokens_trained"] for s in steps),
        trained_tokens=_mean(steps, "tokens_trained"),
        depth=_mean(steps, "depth"),
        bubble_engine=_mean(steps, "bubble_engine"),
        bubble_learner=_mean(steps, "bubble_learner"),
        load=_mean(steps, "samples") / placed,
        accuracy_before=before[0],
        accuracy_after=after[0],
        tokens_before=before[1],
        tokens_after=after[1],
    )


def _fates(steps: Sequence[dict[str, Any]]) -> str:
    """How the groups of these steps ended, the most frequent first."""
    counts: Counter[str] = Counter()
    for step in steps:
        counts.update(step.get("groups", {}))
    ends = ", ".join(f"{count} x {how}" for how, count in counts.most_common(_ENDS))
    more = ", ..." if len(counts) > _ENDS else ""
    return f"nothing was trained on in {len(steps)} step(s): {ends or 'no group ended'}{more}"


def _mean(steps: Sequence[dict[str, Any]], name: str) -> float:
    found = [step[name] for step in steps if name in step]
    return statistics.fmean(found) if found else math.nan
