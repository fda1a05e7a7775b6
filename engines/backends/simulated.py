"""An engine without a model that runs in real time: for tests of everything else.

Turns a request into random tokens at the pace of a real engine: lengths are
lognormal, a decode step takes `step_s` whatever the load. Tokens, logprobs and
length depend on the request's seed only. It has no weights to probe
(`has_model` is False).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.base import Delta, EngineError, EngineInfo, Sampling, TensorCheck
from pipeline.wire.fields import PacedSteps


class SimulatedEngine:
    """Simulates response lengths and decode times, in real time.

    Args:
        vocabulary: token ids are drawn from `first_token`..vocabulary-1.
        stop_token: ends a response that does not reach its limit.
        mean_tokens, sigma: lognormal response length; sigma is that of its logarithm.
        step_s: seconds per decode step.
        load_s: seconds per load of weights.
        interval: tokens per delta, as a vLLM engine has.
        remaining: say with each delta how many tokens are to come, which it knows.
    """

    has_model = False

    def __init__(
        self,
        *,
        slots: int,
        vocabulary: int,
        max_model_tokens: int = 0,
        stop_token: int = 1,
        mean_tokens: float = 40.0,
        sigma: float = 0.7,
        step_s: float = 0.008,
        load_s: float = 0.02,
        interval: int = 8,
        seed: int = 0,
        remaining: bool = False,
    ) -> None:
        self._says_remaining = remaining
        self._info = EngineInfo(
            slots=slots,
            vocabulary=vocabulary,
            max_model_tokens=max_model_tokens,
            latency=((1, step_s), (max(2, slots), step_s)),
            about={"engine": "simulated", "probe": "none"},
        )
        self._first_token = min(stop_token + 1, vocabulary - 1)
        self._stop_token = stop_token
        # The mean of a lognormal is exp(mu + sigma^2 / 2).
        self._mu, self._sigma = math.log(mean_tokens) - sigma**2 / 2, sigma
        self._step_s, self._load_s, self._interval, self._seed = step_s, load_s, interval, seed
        self._slots = asyncio.Semaphore(slots)
        self._aborted: dict[str, asyncio.Event] = {}
        self._serving = asyncio.Event()
        self._version: int | None = None

    async def start(self) -> EngineInfo:
        self._serving.set()
        return self._info

    async def generate(self, sampling: Sampling) -> AsyncIterator[Delta]:
        if sampling.max_tokens < 1 or self._over_limit(sampling):
            raise ValueError(
                f"{len(sampling.tokens)} tokens and {sampling.max_tokens} new ones do not fit "
                f"a model of {self._info.max_model_tokens}"
            )
        aborted = self._aborted[sampling.id] = asyncio.Event()
        try:
            if not await _unless(aborted, self._slots.acquire()):
                yield Delta((), (), "abort", self._version)
                return
            try:
                async for delta in self._run(sampling, aborted):
                    yield delta
            finally:
                self._slots.release()
        finally:
            self._aborted.pop(sampling.id, None)

    async def abort(self, ids: Sequence[str]) -> None:
        for one in ids:
            if one in self._aborted:
                self._aborted[one].set()

    async def load_weights(self, directory: str, version: int) -> None:
        if not Path(directory).is_dir():
            raise EngineError(f"{directory}: no such directory; the published weights are gone")
        self._serving.clear()
        await asyncio.sleep(self._load_s)
        self._version = version
        self._serving.set()

    async def check_tensors(self, directory: str, checksums: Mapping[str, str]) -> TensorCheck:
        del directory, checksums
        return TensorCheck()

    async def logprobs(self, tokens: Sequence[int], temperature: float) -> list[float]:
        del temperature
        return [math.nan] * (len(tokens) - 1)

    async def take_paced(self) -> PacedSteps:
        return PacedSteps()

    def failure(self) -> str:
        return ""

    async def close(self) -> None:
        await self.abort(list(self._aborted))

    def _over_limit(self, sampling: Sampling) -> bool:
        limit = self._info.max_model_tokens
        return limit > 0 and len(sampling.tokens) + sampling.max_tokens > limit

    async def _run(self, sampling: Sampling, aborted: asyncio.Event) -> AsyncIterator[Delta]:
        draw = np.random.default_rng((self._seed, sampling.seed))
        wanted = max(1, round(draw.lognormal(self._mu, self._sigma)))
        total = min(wanted, sampling.max_tokens)
        tokens = draw.integers(self._first_token, self._info.vocabulary, total).tolist()
        logprobs = (-draw.exponential(0.5, total)).tolist()
        if wanted <= sampling.max_tokens:
            tokens[-1] = self._stop_token
        sent, due_s = 0, time.monotonic()
        while sent < total:
            # The first token comes at once, as in vLLM.
            count = min(self._interval if sent else 1, total - sent)
            due_s = max(due_s + count * self._step_s, time.monotonic())
            if await _until(due_s, aborted):
                yield Delta((), (), "abort", self._version)
                return
            await _unless(aborted, self._serving.wait())
            last = sent + count == total
            finish = ("stop" if wanted <= sampling.max_tokens else "length") if last else ""
            part = slice(sent, sent + count)
            sent += count
            left = float(total - sent) if self._says_remaining else None
            yield Delta(tokens[part], logprobs[part], finish, self._version, remaining=left)


async def _until(when_s: float, event: asyncio.Event) -> bool:
    """Sleep until a time of the monotonic clock; returns True if the event came first."""
    try:
        await asyncio.wait_for(event.wait(), max(0.0, when_s - time.monotonic()))
    except TimeoutError:
        return False
    return True


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Await `work`, or cancel it when the event comes; returns True if it was done."""
    task, stop = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        return task.done()
    finally:
        stop.cancel()
        task.cancel()
