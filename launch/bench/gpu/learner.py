"""Measures one pass of the learner alone.

    python -m launch.bench.gpu.learner --config CONFIG --out FILE

Measures seconds of forward and backward over one step's groups, on the learner's device, by the
price of a bucket in `learner.forward.packed_call`. Lengths are geometric. Prints a table and writes
JSON.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from transformers import AutoModelForCausalLM

from launch.bench.developer.packed import group_of
from learner.forward import packed_call
from learner.forward.micro_batches import MicroBatch, micro_batches, response_logprobs
from learner.forward.packed_attention import switch_attention
from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.wire.messages import TrainGroup

PRICES = tuple(1 << power for power in (12, 15, 18, 21))
"""Prices of a bucket in query-key pairs; the first is for a CPU."""
REPEATS = 3  # only the last counts


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Measurement with one price of a bucket."""

    price: int
    buckets: int  # in all micro-batches
    seconds: float  # forward and backward of the step's groups
    peak_gib: float  # device memory; 0: no GPU


class Found(msgspec.Struct, frozen=True, kw_only=True):
    tokens: int  # of the responses
    micro_batches: int
    points: list[Point]


def groups_of(config: Config, mean: float, rng: random.Random) -> list[TrainGroup]:
    """Makes a step's groups with random tokens below 100."""
    most = config.sampling.max_tokens

    def tokens() -> list[int]:
        return [rng.randrange(100) for _ in range(min(most, 1 + int(rng.expovariate(1 / mean))))]

    return [
        group_of(number, [1] * 8, [tokens() for _ in range(config.group.size)])
        for number in range(config.step.prompts)
    ]


def measure_passes(config: Config, mean: float) -> Found:
    """Measures all prices, one after another, on the same groups."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    model: Any = cast(Any, AutoModelForCausalLM).from_pretrained(
        config.model, dtype=getattr(torch, config.learner.dtype), trust_remote_code=False
    )
    model.to(device)
    switch_attention(model, config.learner.attention)
    model.darts_output_is_last = True  # as the learner's check finds for this shape
    groups = groups_of(config, mean, random.Random(0))
    points: list[Point] = []
    batches: list[MicroBatch] = []
    for price in PRICES:
        packed_call.BUCKET_PRICE[device.type] = price
        batches = micro_batches(groups, config.learner.tokens_per_micro_batch, device)
        seconds = 0.0
        for _ in range(REPEATS):
            _synchronize(reset=True)
            started = time.monotonic()
            for batch in batches:
                found: Any = response_logprobs(model, batch.packed, 1.0)
                found.sum().backward()
            _synchronize()
            seconds = time.monotonic() - started
            model.zero_grad(set_to_none=True)
        buckets = sum(len(batch.packed.call.buckets) for batch in batches)
        peak = torch.cuda.max_memory_allocated() / (1 << 30) if torch.cuda.is_available() else 0.0
        points.append(Point(price=price, buckets=buckets, seconds=seconds, peak_gib=peak))
        print(f"price {price:8}: {buckets:4} buckets, {seconds:.3f} s, {peak:.1f} GiB", flush=True)
    sampled = sum(len(member.response) // 4 for group in groups for member in group.members)
    return Found(tokens=sampled, micro_batches=len(batches), points=points)


def _synchronize(reset: bool = False) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        if reset:
            gc.collect()
            torch.cuda.reset_peak_memory_stats()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m launch.bench.gpu.learner")
    parser.add_argument("--config", type=Path, required=True, help="YAML file")
    parser.add_argument("--out", type=Path, required=True, help="file for the results")
    parser.add_argument("--mean-tokens", type=float, default=72.0, help="mean length of a response")
    given = parser.parse_args()
    found = measure_passes(load(given.config), given.mean_tokens)
    given.out.write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
