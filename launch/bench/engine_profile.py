"""Measures the cost of an engine for the simulator: decoding, requests, and a learner beside it.

    python -m launch.bench.engine_profile --out profile.json [--config CONFIG]

Starts the configured engine on a quiet machine and measures seconds for a token by number of
running sequences (as every engine does at its start), seconds that a request costs before its
first token, prompt included, and how much slower decoding is while a learner's work (one thread of
matrix products) keeps the other cores busy. `darts simulate --replay` predicts steps from them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
from pathlib import Path

import msgspec

from engines.latency_profile import measure_latency, time_batch
from engines.process_group import end_group, lead_own_group
from engines.worker import build_engine
from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.hardware.costs import EngineProfile
from pipeline.system.cpu_cores import engine_cores

_REPEATS = 5
_DECODED = 64
_NEIGHBOUR = (
    "import torch; torch.set_num_threads(1); a = torch.randn(256, 256)\n"
    "while True: a = torch.tanh(a @ a / 256)"
)


async def profile_engine(config: Config) -> EngineProfile:
    """Starts the engine, measures it, and ends it. Raises EngineError."""
    engine = build_engine(config)
    info = await engine.start()
    try:
        latency, _ = await measure_latency(engine, info)
        few, many = max(1, info.slots // 8), info.slots

        async def seconds(count: int, tokens: int) -> float:
            found = [await time_batch(engine, info, count, tokens) for _ in range(_REPEATS)]
            return statistics.median(found)

        first = [await seconds(count, 1) for count in (few, many)]
        alone = await seconds(many, _DECODED)
        engines_own = engine_cores(config.engine.cpu_cores, os.sched_getaffinity(0))
        others = sorted(os.sched_getaffinity(0) - set(engines_own))
        code = f"import os; os.sched_setaffinity(0, {others})\n{_NEIGHBOUR}"
        neighbour = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        try:
            await asyncio.sleep(5.0)  # until torch is imported
            together = await seconds(many, _DECODED)
        finally:
            neighbour.kill()
            await neighbour.wait()
    finally:
        await engine.close()
    return EngineProfile(
        latency=latency,
        request_s=max(0.0, (first[1] - first[0]) / (many - few)),
        beside=max(1.0, together / alone),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, default=Path("configs/quickstart.yaml"), help="YAML file"
    )
    parser.add_argument("--out", type=Path, required=True, help="file for the profile, JSON")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)  # before minutes of measuring
    lead_own_group()
    import uvloop

    try:
        found = uvloop.run(profile_engine(load(options.config)))
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
        running = ", ".join(f"{b}: {1e3 * s:.2f}" for b, s in found.latency)
        print(f"ms for a token by running sequences: {running}")
        print(f"a request: {1e3 * found.request_s:.2f} ms; beside a learner: {found.beside:.2f}x")
    finally:
        end_group()


if __name__ == "__main__":
    main()
