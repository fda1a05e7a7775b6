"""Measures seconds per token of this engine by the number of running sequences, once.

PTL(b) of arXiv 2605.30859. Two batches of b requests differ in length only; the
difference of their times is what the extra tokens took, without prefill and without the
delay of streaming. Cached per model, machine and settings in the user's cache directory.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import time
from pathlib import Path

import msgspec

from engines.base import Engine, EngineInfo, Sampling, log_line
from pipeline.config.schema import EngineConfig
from pipeline.hardware.costs import PROFILE_PROMPT
from pipeline.system import untrusted_files
from pipeline.system.cache_dir import cache_directory
from pipeline.wire.fields import Drawing

SHORT, LONG = 8, 40
"""New tokens per request in the two batches."""
_LAYOUT = 3
"""Version of the settings in `engines.backends.vllm`: a new number makes every cache stale."""
_TIMES = 2
"""Batches of a size of which the fastest counts: what else a machine does only adds time."""
_STEADY = 1.5
"""Slowest over fastest of these up to which a profile is kept for later runs."""

Points = tuple[tuple[int, float], ...]
"""(running sequences, seconds per token of each)."""


async def cached_latency(
    engine: Engine, info: EngineInfo, model: str, section: EngineConfig
) -> Points:
    """Read the profile of a started engine from the cache, or measure it (a few seconds)."""
    cache = cache_directory()
    if cache is None:  # no home is known: nothing can be kept
        return (await measure_latency(engine, info))[0]
    file = cache / "darts" / "latency" / f"{_key(info, model, section)}.json"
    try:
        return untrusted_files.read_json(file, Points)
    except untrusted_files.UnreadableFile:
        pass  # not measured yet, or the file was cut short
    points, steady = await measure_latency(engine, info)
    if not steady:
        log_line("the machine is busy: this latency profile is not kept for later runs")
        return points
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(msgspec.json.encode(points))
        temporary.rename(file)
    except OSError as error:  # no home directory, or a read-only one
        log_line(f"could not cache the latency profile: {error}")
    return points


async def measure_latency(engine: Engine, info: EngineInfo) -> tuple[Points, bool]:
    """Measure seconds per token at 1, an eighth, a quarter, half and all of the slots.

    Returns: the points, and whether batches of one size took about the same time.
    """
    counts = sorted({1, *(max(2, info.slots // part) for part in (8, 4, 2, 1))})
    await time_batch(engine, info, 1, SHORT)  # one-time costs are no latency
    points: list[tuple[int, float]] = []
    steady = True
    for count in counts:
        running = min(count, info.slots)
        short = [await time_batch(engine, info, running, SHORT) for _ in range(_TIMES)]
        long = [await time_batch(engine, info, running, LONG) for _ in range(_TIMES)]
        seconds = (min(long) - min(short)) / (LONG - SHORT)
        if seconds < min(long) / LONG / 2:  # most of a long batch is its tokens
            seconds, steady = min(long) / LONG, False
        floor = points[-1][1] if points else 1e-6  # more sequences never take less time
        points.append((count, max(floor, seconds)))
        steady = steady and max(long) < _STEADY * min(long)
    return tuple(points), steady


async def time_batch(engine: Engine, info: EngineInfo, count: int, tokens: int) -> float:
    """Return the seconds from the first request to the last token."""

    async def one(number: int) -> None:
        prompt = [(7 * number + 3 * at) % info.vocabulary for at in range(PROFILE_PROMPT)]
        async for _ in engine.generate(
            Sampling(
                id=f"profile-{tokens}-{number}",
                tokens=prompt,
                max_tokens=tokens,
                drawing=Drawing(),
                seed=number,
                ignore_stop=True,
            )
        ):
            pass

    started = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(count)))
    return time.perf_counter() - started


def _key(info: EngineInfo, model: str, section: EngineConfig) -> str:
    known = Path(model) / "config.json"
    parts = [
        str(_LAYOUT),
        known.read_bytes().decode(errors="replace") if known.is_file() else model,
        msgspec.json.encode(section).decode(),
        msgspec.json.encode(info.about, order="sorted").decode(),
        platform.processor() or platform.machine(),
        platform.node(),
        str(len(os.sched_getaffinity(0))),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
