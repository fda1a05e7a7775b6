"""Replays a real run in virtual time and predicts the length of its steps.

    python -m launch.bench.engine_profile --out profile.json
    python -m scripts.bench.engine_overhead --out overhead.json
    darts simulate --replay runs/a --profile profile.json --overhead overhead.json

The profile gives the cost of decoding and requests for the engine alone; the overhead gives the
share of its tokens a second that remains with sockets and stage around it. The run's folder gives
the length of every candidate (`decisions.jsonl`), the learner's seconds a token and the time to
load weights (`metrics.jsonl`). The times of steps and of generation are not used: they are
predicted, and compared with the measured ones. A candidate that was cut short has an unknown
length; it gets that of some longer response of the run. A paced run needs neither file: its engines
kept to a known cost.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from launch.run_files.jsonl import all_lines
from launch.simulate.scenario import begin_simulation
from pipeline.config.load import load
from pipeline.config.pace import engine_pace, learner_pace
from pipeline.config.schema import Config
from pipeline.data.dataset import load_train
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.wanted import wanted_of
from pipeline.hardware.costs import EngineCost, EngineProfile, LearnerCost, Machines
from pipeline.simulation.recorded_workload import Recorded, RecordedMember
from pipeline.system.run_folder import RunFolder

_PROMPT = 20  # tokens; arbitrary: the cost of a request is that of the profile
_REWARD_S = 5e-3
"""Seconds of a call of a cheap reward function, with its transport."""


class ReplayError(ValueError):
    """The folder is not that of a finished run, or lacks data."""


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """Mean seconds of a step, over the steps of the run."""

    run: str
    measured: float
    predicted: float
    generation_measured: float
    generation_predicted: float
    step_error: float = 0.0  # |predicted / measured - 1| of a step, median over the steps

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted / self.measured - 1.0


def replay_run(path: Path, profile: EngineProfile | None, left: float) -> Replay:
    """Replays one run. Raises ReplayError, ConfigError, DataError.

    Args:
        profile: of its engine; not needed for a paced run.
        left: tokens a second through the pipeline, over those of the engine alone.
    """
    run = RunFolder(path)
    if not run.result.exists():
        raise ReplayError(f"{run.result}: no such file; only a finished run can be replayed")
    config = load(run.config, weights=False)
    metrics = all_lines(run.metrics)
    steps = [line for line in metrics if line["what"] == "step"]
    decisions = all_lines(run.decisions)
    cost = engine_pace(config.engine.pace)
    if cost is not None:
        prompts: Sequence[int] = _prompt_lengths(config)
        machines = _paced_machines(config, cost, metrics)
    elif profile is not None:
        prompts = (_PROMPT,) * _prompts(decisions)
        machines = machines_of(config, profile, left, metrics)
    else:
        raise ReplayError(
            f"{path}: not a paced run: --replay needs --profile FILE from "
            "python -m launch.bench.engine_profile"
        )
    simulation = begin_simulation(
        msgspec.structs.replace(
            config,
            eval=msgspec.structs.replace(config.eval, every=0),
            checkpoint=msgspec.structs.replace(config.checkpoint, every=0),
        ),
        machines,
        Recorded(groups_of(decisions), config.sampling.max_tokens, seed=config.seed),
        prompt_tokens=prompts,
    )
    simulation.run()
    played = simulation.of("step")
    pairs = zip(played, steps, strict=False)
    return Replay(
        run=path.name,
        measured=_mean(steps, "seconds"),
        predicted=_mean(played, "seconds"),
        generation_measured=_mean(steps, "generation_s"),
        generation_predicted=_mean(played, "generation_s"),
        step_error=statistics.median(abs(p["seconds"] / s["seconds"] - 1.0) for p, s in pairs),
    )


def left_by_pipeline(overhead: Path) -> float:
    """Returns tokens a second with an idle learner, over those of vLLM alone."""
    return float(json.loads(overhead.read_text())["sink"]["ratio"])


def groups_of(
    decisions: Sequence[dict[str, Any]],
) -> list[tuple[int, list[RecordedMember]]]:
    """Returns (prompt, members) of training groups, in order."""
    groups = sorted(
        (line for line in decisions if line["what"] == "group" and line["kind"] == "train"),
        key=lambda line: line["group"],
    )
    return [
        (
            line["prompt"],
            [RecordedMember(tokens=tokens, whole=state == "finished", reward=reward or 0.0)
             for _, state, tokens, _, reward, *_ in line["members"]],
        )
        for line in groups
    ]  # fmt: skip


def machines_of(
    config: Config, profile: EngineProfile, left: float, metrics: Sequence[dict[str, Any]]
) -> Machines:
    """Models the machines by the engine's profile and the run's measurements of its learner."""
    steps = [line for line in metrics if line["what"] == "step"]
    learner = [line["learner"] for line in steps if line["learner"].get("backward_s")]
    tokens = sum(line["tokens_trained"] for line in steps)
    return Machines(
        engines=config.engine.count,
        slots=config.engine.slots,
        engine=EngineCost(
            points=tuple((running, seconds / left) for running, seconds in profile.latency),
            prefill_s=profile.request_s / _PROMPT,
            load_s=load_seconds(metrics),
            beside=profile.beside if config.learner.overlap != "off" else 1.0,
        ),
        learner=LearnerCost(
            train_s=sum(of["backward_s"] for of in learner) / tokens,
            step_s=statistics.median(of["optimizer_s"] for of in learner),
            publish_s=statistics.median(of["publish_s"] for of in learner),
        ),
        ranks=config.learner.ranks,
        chunk_tokens=config.engine.chunk_tokens,
        delay_s=profile.latency[-1][1],  # a message is read between two decode steps
        reward_s=_REWARD_S,
        tick_s=1.0,
    )


def _paced_machines(
    config: Config, cost: EngineCost, metrics: Sequence[dict[str, Any]]
) -> Machines:
    """Models the machines by the paces of a run; what has none by its measurements."""
    measured = machines_of(
        config, EngineProfile(latency=cost.points, request_s=0.0, beside=1.0), 1.0, metrics
    )
    learner, pace = measured.learner, learner_pace(config.learner.pace)
    if pace is not None:
        steps = [line["learner"] for line in metrics if line["what"] == "step"]
        share = statistics.fmean(of.get("computed_share", 1.0) for of in steps)
        learner = msgspec.structs.replace(
            learner, train_s=share * pace.train_s, forward_s=pace.logprob_s
        )
    return msgspec.structs.replace(
        measured,
        engine=msgspec.structs.replace(cost, load_s=measured.engine.load_s),
        learner=learner,
        delay_s=cost.points[0][1] / 2,  # half a step, until a message is read
    )


def _prompt_lengths(config: Config) -> list[int]:
    """Returns the tokens of every training prompt."""
    tokenizer, limit = Tokenizer(Path(config.model)), config.sampling.max_tokens
    data = load_train(config.data, tokenizer, limit, wanted_of(config))
    return [len(item.tokens) // 4 for item in data.items]  # int32


def load_seconds(metrics: Sequence[dict[str, Any]]) -> float:
    """Returns the median time from a step's end until an engine has verified the next weights."""
    found: list[float] = []
    applied: dict[int, float] = {}
    for line in metrics:
        if line["what"] == "step":
            applied[line["version"] + 1] = line["time"]
        elif line["what"] == "served" and line["version"] in applied:
            found.append(line["time"] - applied.pop(line["version"]))
    return statistics.median(found) if found else 0.0


def _prompts(decisions: Sequence[dict[str, Any]]) -> int:
    return 1 + max(line["prompt"] for line in decisions if line.get("kind") == "train")


def _mean(steps: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.fmean(step[name] for step in steps)


def replay_table(replays: Sequence[Replay]) -> str:
    titles = "run | step, measured | predicted | error | of a step, median"
    lines = [f"| {titles} | generation | predicted | error |", "|---" * 8 + "|"]
    lines += [
        f"| {r.run} | {r.measured:.3f} | {r.predicted:.3f} | {r.error:+.1%} | {r.step_error:.1%} "
        f"| {r.generation_measured:.3f} | {r.generation_predicted:.3f} "
        f"| {r.generation_predicted / r.generation_measured - 1.0:+.1%} |"
        for r in replays
    ]
    return "\n".join(lines)
