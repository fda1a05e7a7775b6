"""transformers as an engine: runs its continuous batching in a thread and streams deltas.

Keeps vLLM's three promises (`engines.backends.vllm`): logprobs are of the distribution
that was sampled from, a delta has one version of the weights, and after `close`
nothing is left. The model is a module of this process. To load weights, every request is
withdrawn from the library, the weights are copied in place between two forward passes,
and the requests are handed in again with the tokens that they have: so no key or value of
the old weights is read again, and prefixes are not shared.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers.generation.continuous_batching.continuous_api import OutputRouter

from engines.backends.transformers_batching import Batching
from engines.backends.transformers_sampling import LIKELIEST, NOT_FORCED, Draw
from engines.base import Delta, EngineError, EngineInfo, Sampling, TensorCheck
from engines.model_facts import ModelFacts, read_model_facts
from engines.pace import FREE
from engines.weights import FILE
from engines.weights_probe import PROBES, probe_one_by_one
from pipeline.config.schema import EngineConfig
from pipeline.wire.fields import Drawing, PacedSteps


class _Router(OutputRouter):
    """Hands all outputs of a forward pass to the event loop in one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hear: Callable[[list[Any]], None]) -> None:
        super().__init__()
        self._loop, self._hear = loop, hear

    def deliver(self, output: Any) -> None:
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list[Any]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._hear, outputs)
        except RuntimeError:  # the loop has ended, and with it the requests
            pass


@dataclasses.dataclass(slots=True)
class _Request:
    """One request; it may be handed to the library several times."""

    sampling: Sampling
    forced: int = NOT_FORCED
    inner: str = ""  # its id in the library; '': withdrawn
    heard: int = 0  # tokens received since it was last handed in
    version: int | None = None  # of the weights since then
    tokens: list[int] = dataclasses.field(default_factory=list[int])
    waiting: list[Delta] = dataclasses.field(default_factory=list[Delta])
    finish: str = ""
    error: str = ""
    news: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def take_deltas(self) -> list[Delta]:
        """Return the tokens since the last call, one delta per version; the last has the finish."""
        deltas: list[Delta] = []
        for version, run in itertools.groupby(self.waiting, key=lambda delta: delta.version):
            parts = list(run)
            tokens = [token for part in parts for token in part.tokens]
            logprobs = [logprob for part in parts for logprob in part.logprobs]
            deltas.append(Delta(tokens, logprobs, "", version))
        self.waiting = []
        if self.finish and deltas:
            last = deltas[-1]
            deltas[-1] = Delta(last.tokens, last.logprobs, self.finish, last.version)
        elif self.finish:
            deltas.append(Delta((), (), self.finish, self.version))
        return deltas


class TransformersEngine:
    """One model in this process.

    Args:
        model: a Hugging Face directory.
        section: settings of the engines.
        seed: for whatever has no seed of its own.
        truncates: requests may ask for a part of the tokens (top_p and the like). On a GPU every
            step pays for that.
    """

    has_model = True

    def __init__(
        self, model: str, section: EngineConfig, seed: int = 0, *, truncates: bool = True
    ) -> None:
        self._directory, self._section, self._seed = model, section, seed
        self._truncates = truncates
        self._interval = min(8, section.chunk_tokens)
        self._facts: ModelFacts | None = None
        self._batching: Batching | None = None
        self._limit = 0  # tokens of a prompt and its response
        self._requests: dict[str, _Request] = {}
        self._by_inner: dict[str, _Request] = {}
        self._ids = itertools.count()
        self._loading = asyncio.Lock()
        self._held = False  # requests wait for new weights
        self._version: int | None = None

    async def start(self) -> EngineInfo:
        self._facts = facts = read_model_facts(self._directory)
        router = _Router(asyncio.get_running_loop(), self._heard)
        requests = self._section.slots + 2 * PROBES
        try:
            self._batching = batching = await asyncio.to_thread(
                Batching,
                self._directory,
                self._section,
                requests,
                self._seed,
                router,
                truncates=self._truncates,
            )
            cached = batching.cached_tokens
            self._limit = min(facts.max_model_tokens or cached, cached)
            first = Sampling(id="first", tokens=[0], max_tokens=1, drawing=Drawing(), seed=0)
            async for _ in self.generate(first):
                pass
        except Exception as error:  # anything may fail inside the library
            await self.close()
            raise EngineError(
                f"transformers {transformers.__version__} does not start with "
                f"{self._directory}: {type(error).__name__}: {error}"
            ) from error
        return EngineInfo(
            slots=self._section.slots,
            vocabulary=facts.vocabulary,
            max_model_tokens=self._limit,
            about={"engine": f"transformers {transformers.__version__}", **batching.about},
        )

    async def generate(self, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        if sampling.max_tokens < 1 or len(sampling.tokens) + sampling.max_tokens > self._limit:
            raise ValueError(
                f"{len(sampling.tokens)} tokens and {sampling.max_tokens} new ones do not fit "
                f"a model and cache of {self._limit}"
            )
        if not (sampling.drawing.whole or self._truncates):
            raise ValueError("this engine was started to draw from all tokens")
        request = _Request(sampling)
        async for delta in self._run(request):
            yield delta

    async def abort(self, ids: Sequence[str]) -> None:
        for one in ids:
            request = self._requests.get(one)
            if request is not None and not request.finish:
                self._withdraw(request)
                request.finish = "abort"
                request.news.set()

    async def load_weights(self, directory: str, version: int) -> None:
        async with self._loading:
            self._held = True
            for request in self._requests.values():
                self._withdraw(request)
            try:
                assert self._batching is not None
                await asyncio.to_thread(self._batching.copy_weights, Path(directory) / FILE)
            except Exception as error:  # half loaded: it must not sample any more
                raise EngineError(f"transformers cannot load {directory}: {error}") from error
            self._version, self._held = version, False
            for request in list(self._requests.values()):
                if not request.finish:
                    self._submit(request)

    async def check_tensors(self, directory: str, checksums: Mapping[str, str]) -> TensorCheck:
        assert self._batching is not None
        async with self._loading:
            return await asyncio.to_thread(
                self._batching.compare_weights, Path(directory) / FILE, checksums
            )

    async def logprobs(self, tokens: Sequence[int], temperature: float) -> list[float]:
        """Uses the path that samples: each position samples one token, which is forced."""
        return await probe_one_by_one(
            tokens, lambda before, token: self._logprob(before, token, temperature)
        )

    async def take_paced(self) -> PacedSteps:
        assert self._batching is not None
        return self._batching.take_paced()

    def failure(self) -> str:
        return self._batching.failure() if self._batching is not None else ""

    async def close(self) -> None:
        await self.abort(list(self._requests))
        batching, self._batching = self._batching, None
        if batching is not None:
            await asyncio.to_thread(batching.close)

    # --- requests ---------------------------------------------------------------------------

    async def _run(self, request: _Request) -> AsyncGenerator[Delta, None]:
        self._requests[request.sampling.id] = request
        try:
            if not self._held:
                self._submit(request)
            while True:
                await request.news.wait()
                request.news.clear()
                if request.error:
                    raise (
                        EngineError(why) if (why := self.failure()) else RuntimeError(request.error)
                    )
                for delta in request.take_deltas():
                    yield delta
                    if delta.finish:
                        return
        finally:
            self._withdraw(request)
            self._requests.pop(request.sampling.id, None)

    def _submit(self, request: _Request) -> None:
        """Hand a request to the library, with the tokens that it has."""
        assert self._batching is not None
        sampling, done = request.sampling, len(request.tokens)
        drawing = sampling.drawing
        greedy = not drawing.temperature and request.forced == NOT_FORCED
        forced = LIKELIEST if greedy else request.forced
        free = FREE if sampling.id.startswith(FREE) else ""
        request.inner, request.heard = f"{free}{next(self._ids)}", 0
        request.version = self._version
        self._by_inner[request.inner] = request
        if not self._batching.add_request(
            request.inner,
            [*sampling.tokens, *request.tokens],
            sampling.max_tokens - done,
            self._stops(sampling),
            float(drawing.temperature) or 1.0,
            Draw(sampling.seed, position=done, forced=forced, drawing=drawing),
        ):
            request.error = "the library takes no more requests"
            request.news.set()

    def _withdraw(self, request: _Request) -> None:
        """Take a request back from the library; its later outputs are ignored."""
        if request.inner:
            self._by_inner.pop(request.inner, None)
            if self._batching is not None:
                self._batching.cancel_request(request.inner)
            request.inner = ""

    def _heard(self, outputs: list[Any]) -> None:
        """Handle the new tokens of one forward pass."""
        for output in outputs:
            request = self._by_inner.get(output.request_id)
            if request is None:
                # Withdrawn; the library loses a cancellation that arrives before its request.
                if not output.is_finished() and self._batching is not None:
                    self._batching.cancel_request(output.request_id)
                continue
            tokens = output.generated_tokens[request.heard :]
            logprobs = output.logprobs[request.heard :]
            request.heard += len(tokens)
            first = not request.tokens
            request.tokens += tokens
            if tokens:
                request.waiting.append(Delta(tokens, logprobs, "", request.version))
            if output.is_finished():
                self._by_inner.pop(request.inner, None)
                request.inner = ""
                request.error = output.error or ""
                request.finish = self._finish_of(request)
            gathered = sum(len(delta.tokens) for delta in request.waiting)
            if request.finish or request.error or first or gathered >= self._interval:
                request.news.set()

    def _finish_of(self, request: _Request) -> str:
        stops = self._stops(request.sampling)
        return "stop" if request.tokens and request.tokens[-1] in stops else "length"

    def _stops(self, sampling: Sampling) -> tuple[int, ...]:
        """Return the tokens that end the request."""
        assert self._facts is not None
        return () if sampling.ignore_stop else (*self._facts.stop_tokens, *sampling.stop_tokens)

    async def _logprob(self, before: Sequence[int], token: int, temperature: float) -> float:
        """Return the logprob of `token` after `before`."""
        sampling = Sampling(
            id=f"{FREE}probe-{next(self._ids)}",
            tokens=before,
            max_tokens=1,
            drawing=Drawing(temperature=temperature),
            seed=0,
            ignore_stop=True,
        )
        async for delta in self._run(_Request(sampling, forced=token)):
            for logprob in delta.logprobs:
                return logprob
        return math.nan
