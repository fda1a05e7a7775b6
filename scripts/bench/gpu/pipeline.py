"""Settings of the whole pipeline on one GPU, and the averages of such a run."""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launch.run_files.jsonl import all_lines
from pipeline.plugins.views import Sampled
from scripts.bench.overlap import step_means

GRAPHS = {"attn_implementation": "sdpa", "use_cuda_graph": True}
"""Arguments of the engine `transformers` for captured CUDA graphs."""


def coin(sample: Sampled) -> float:
    """A reward that differs among random responses to a prompt."""
    return float(zlib.crc32(sample.response.encode()) % 2)


def gpu_settings(model: Path, overlap: str, tiny: bool, steps: int) -> dict[str, Any]:
    """Returns the settings of a run: the quickstart's task, sized for a GPU or two cores."""
    learner: dict[str, Any] = {"overlap": overlap, "lr": 1e-6, "warmup_steps": 0, "entropy": False}
    if not tiny:
        learner |= {"dtype": "bfloat16", "zero": 1, "tokens_per_micro_batch": 8192}
    engine = {
        "kind": "transformers",
        "slots": 16 if tiny else 256,
        "dtype": "float32" if tiny else "bfloat16",
        "gpu_memory": 0.35,
        "restarts": 0,
    }
    return {
        "model": str(model.resolve()),
        "data": {"held_out": 0},
        "sampling": {"max_tokens": 64 if tiny else 384},
        "step": {"count": steps, "prompts": 4 if tiny else 16},
        "group": {"size": 4 if tiny else 8},
        "reward": {"python": {"function": "scripts.bench.gpu.pipeline:coin"}},
        # Groups end one by one. With the default most end together at the step's barrier, which
        # leaves little generation to overlap with.
        "selector": "first_m",
        "learner": learner,
        "engine": engine,
        "eval": {"every": 0},
        "checkpoint": {"every": 0},
        "timeouts": {"join_s": 90.0},
        "metrics": {"tensorboard": False},
    }


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the steps of one run without its first; seconds."""

    steps: int
    step_s: float
    generation_s: float
    learning_s: float  # forward and backward
    optimizer_s: float
    publish_s: float
    load_s: float  # of the new weights, with their check
    hidden_share: float  # share of forward and backward that ran during generation
    sampled: float  # tokens a step
    trained: float
    tokens_per_s: float  # sampled
    trained_per_s: float  # tokens
    engine_idle: float  # share of the slots' seconds during generation
    mismatch: float  # between the learner's and the engine's logprobs, nats


def run_averages(lines: Sequence[Mapping[str, Any]]) -> Run:
    """Averages the lines of a run's metrics. Raises ValueError below two steps."""
    found = step_means(lines)
    steps = [line for line in lines if line["what"] == "step"][1:]
    after_s = found.step - found.generation - found.load - found.optimizer - found.publish
    hidden = 1.0 - after_s / found.learning if found.learning else 0.0
    seconds = sum(line["seconds"] for line in steps)
    sampled = sum(line["tokens_sampled"] for line in steps)
    trained = sum(line["tokens_trained"] for line in steps)
    return Run(
        steps=len(steps),
        step_s=found.step,
        generation_s=found.generation,
        learning_s=found.learning,
        optimizer_s=found.optimizer,
        publish_s=found.publish,
        load_s=found.load,
        hidden_share=min(1.0, max(0.0, hidden)),
        sampled=sampled / len(steps),
        trained=trained / len(steps),
        tokens_per_s=sampled / seconds,
        trained_per_s=trained / seconds,
        engine_idle=statistics.fmean(line["bubble_engine"] for line in steps),
        mismatch=statistics.fmean(line["learner"].get("mismatch", 0.0) for line in steps),
    )


def add_averages(done: dict[str, Any], folder: Path) -> None:
    """Adds the averages of a run's steps to its part, or why there are none."""
    metrics = folder / "metrics.jsonl"
    try:
        found = run_averages(all_lines(metrics) if metrics.exists() else [])
    except ValueError as error:
        done["error"] = done["error"] or str(error)
    else:
        done["found"] = msgspec.to_builtins(found)
