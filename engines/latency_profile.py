"""What a token costs on this engine, by the number of sequences that run: measured once.

PTL(b) of arXiv 2605.30859. Two batches of b requests that differ in length
alone; the difference of their times is what the extra tokens took, without
prefill and without the delay of streaming. Kept per model, machine and settings
below the user's cache directory, since an engine that is started again is
the same engine.
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

SHORT, LONG = 8, 40
"""New tokens of a request in the two batches."""
_PROMPT_TOKENS = 16
_LAYOUT = 2
"""Of the engine's processes and settings in `engines.backends.vllm`: a new number measures anew."""

Points = tuple[tuple[int, float], ...]
"""(running sequences, seconds per token of each)."""


async def latency(engine: Engine, info: EngineInfo, model: str, section: EngineConfig) -> Points:
    """The profile of a started engine: from the cache, else measured (a few seconds)."""
    file = _cache() / f"{_key(info, model, section)}.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=Points)
    except (OSError, msgspec.DecodeError):
        pass  # measured for the first time, or cut short while it was written
    points = await measure(engine, info)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(msgspec.json.encode(points))
        temporary.rename(file)
    except OSError as error:  # no home, or none that may be written
        log_line(f"the latency profile is not kept: {error}")
    return points


async def measure(engine: Engine, info: EngineInfo) -> Points:
    """Seconds per token at 1, an eighth, a quarter, half of the slots, and all of them."""
    counts = sorted({1, *(max(2, info.slots // part) for part in (8, 4, 2, 1))})
    await batch(engine, info, 1, SHORT)  # what happens only once is no latency
    points: list[tuple[int, float]] = []
    for count in counts:
        running = min(count, info.slots)
        short = await batch(engine, info, running, SHORT)
        extra = await batch(engine, info, running, LONG) - short
        floor = points[-1][1] if points else 1e-6  # more sequences never take less time
        points.append((count, max(floor, extra / (LONG - SHORT))))
    return tuple(points)


async def batch(engine: Engine, info: EngineInfo, count: int, tokens: int) -> float:
    """Seconds from the first request to the last token."""

    async def one(number: int) -> None:
        prompt = [(7 * number + 3 * at) % info.vocabulary for at in range(_PROMPT_TOKENS)]
        async for _ in engine.generate(
            Sampling(
                id=f"profile-{tokens}-{number}",
                tokens=prompt,
                max_tokens=tokens,
                temperature=1.0,
                seed=number,
                ignore_stop=True,
            )
        ):
            pass

    started = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(count)))
    return time.perf_counter() - started


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "darts" / "latency"


def _key(info: EngineInfo, model: str, section: EngineConfig) -> str:
    known = Path(model) / "config.json"
    parts = [
        str(_LAYOUT),
        known.read_text() if known.is_file() else model,
        msgspec.json.encode(section).decode(),
        msgspec.json.encode(info.about, order="sorted").decode(),
        platform.processor() or platform.machine(),
        platform.node(),
        str(len(os.sched_getaffinity(0))),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
