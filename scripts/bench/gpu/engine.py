"""Measures the transformers engine alone.

    python -m scripts.bench.gpu.engine --config CONFIG --out FILE

Writes seconds for a decode step and tokens per second by running sequences, the time to load
weights with requests in flight, and the largest gap of its logprobs to a plain forward, as JSON.
It is a separate process, so that its memory is separate too.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engines import latency_profile
from engines.backends.transformers import TransformersEngine
from engines.base import EngineInfo, Sampling
from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.wire.fields import Drawing

SHORT, LONG = 8, 72
"""New tokens of a request in two batches; their difference gives the time of decode steps."""
PROBE_TOKENS = 48
PROMPT = [2, 3, 4, 5, 6, 7, 8, 9]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    running: int  # sequences
    step_s: float  # of a decode step
    tokens_per_s: float


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements."""

    about: dict[str, str]
    start_s: float
    points: list[Point]
    load_s: float  # of new weights, with `slots` requests in flight
    gap: float  # largest, of sampled tokens' logprobs to a plain forward's, nats
    peak_gib: float  # device memory that torch has reserved; 0: no GPU


def counts(slots: int) -> list[int]:
    """Returns 1, 2, 4, ... up to the number of slots.

    >>> counts(20)
    [1, 2, 4, 8, 16, 20]
    """
    return sorted({slots, *(2**power for power in range(slots.bit_length()) if 2**power <= slots)})


async def measure_engine(config: Config, running_most: int, running: Sequence[int] = ()) -> Found:
    """Measures one engine.

    Args:
        config: with the engine's section.
        running_most: largest number of running sequences.
        running: numbers of running sequences, instead of 1, 2, 4, ...
    """
    started = time.monotonic()
    engine = TransformersEngine(config.model, config.engine, config.seed)
    info = await engine.start()
    start_s = time.monotonic() - started
    try:
        points: list[Point] = []
        for count in running or counts(min(info.slots, running_most)):
            await latency_profile.time_batch(engine, info, count, SHORT)  # warms up
            short = await latency_profile.time_batch(engine, info, count, SHORT)
            step_s = (await latency_profile.time_batch(engine, info, count, LONG) - short) / (
                LONG - SHORT
            )
            points.append(Point(running=count, step_s=step_s, tokens_per_s=count / step_s))
            print(f"{count:4} sequences: {1e3 * step_s:7.2f} ms a step", flush=True)
        return Found(
            about=info.about,
            start_s=start_s,
            points=points,
            load_s=await load_in_flight(engine, info, config.model),
            gap=await logprob_gap(engine, config),
            peak_gib=peak_gib(),
        )
    finally:
        await engine.close()


async def load_in_flight(engine: TransformersEngine, info: EngineInfo, model: str) -> float:
    """Measures the seconds to load the same weights while all slots run."""
    running = asyncio.create_task(latency_profile.time_batch(engine, info, info.slots, LONG))
    await asyncio.sleep(0.2)
    started = time.monotonic()
    await engine.load_weights(model, 1)
    took_s = time.monotonic() - started
    await running
    return took_s


async def logprob_gap(engine: TransformersEngine, config: Config) -> float:
    """Returns the largest difference of a response's logprobs to those of a plain forward."""
    import torch
    from transformers import AutoModelForCausalLM

    tokens: list[int] = []
    found: list[float] = []
    asked = Sampling(
        id="gap",
        tokens=PROMPT,
        max_tokens=PROBE_TOKENS,
        drawing=Drawing(),
        seed=1,
        ignore_stop=True,
    )
    async for delta in engine.generate(asked):
        tokens += delta.tokens
        found += delta.logprobs
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, config.engine.dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(
        config.model, dtype=kind, trust_remote_code=False
    )
    model.to(device)
    with torch.no_grad():
        ids_T = torch.tensor([*PROMPT, *tokens], device=device)
        logprobs_TV = model(ids_T[None]).logits[0].float().log_softmax(-1)
    first = len(PROMPT) - 1
    expected_T = logprobs_TV[first:-1].gather(-1, ids_T[first + 1 :, None]).squeeze(-1)
    return float((expected_T.cpu() - torch.tensor(found)).abs().max())


def peak_gib() -> float:
    import torch

    return torch.cuda.max_memory_reserved() / (1 << 30) if torch.cuda.is_available() else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.gpu.engine")
    parser.add_argument("--config", type=Path, required=True, help="YAML file")
    parser.add_argument("--out", type=Path, required=True, help="file for the results")
    parser.add_argument(
        "--most", type=int, default=1 << 16, help="largest number of running sequences"
    )
    parser.add_argument(
        "--running", type=int, nargs="+", default=(), help="numbers of sequences, not 1, 2, 4, ..."
    )
    given = parser.parse_args()
    import uvloop

    found = uvloop.run(measure_engine(load(given.config), given.most, given.running))
    given.out.write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
