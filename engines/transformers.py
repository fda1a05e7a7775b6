"""transformers as an engine: its continuous batching in a thread, deltas of one version out.

Keeps vLLM's three promises (`engines.vllm`): logprobs are of the distribution
that was sampled from, a delta has one version of the weights, and after `close`
nothing is left. The model is a module of this process. New weights withdraw
every request from the library, are copied in place between two forward passes,
and the requests are handed in again with the tokens that they have: so nothing
of the old weights' keys and values is read any more, and prefixes are not shared.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import logging
import math
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.utils import logging as chatter

from engines import attention
from engines.base import Delta, EngineError, EngineInfo, Sampling
from engines.drawing import Draw, Drawing
from engines.model_files import ModelFacts, read_model_facts
from engines.weights import FILE
from pipeline.config import EngineSection
from pipeline.cores import CoresError, engine_cores

log = logging.getLogger("engines.transformers")

PROBES = 16
"""Positions that `logprobs` answers; twice as many requests fit beyond the slots."""
BATCH_TOKENS = {"cuda": 2048, "cpu": 512}
"""Tokens of one forward pass at most. The mask of the attention `sdpa` is that times the cache."""
_STOP_S = 10.0  # for the library's thread: it ends between two forward passes
_GIB = 1 << 30
_FIELDS = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}


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
        except RuntimeError:  # the loop has ended, and with it whoever asked
            pass


@dataclasses.dataclass(slots=True)
class _Request:
    """One request, over all its stays in the library."""

    sampling: Sampling
    forced: int | None = None
    inner: str = ""  # its id in the library; '': withdrawn
    heard: int = 0  # tokens of this stay
    version: int | None = None  # of the weights of this stay
    tokens: list[int] = dataclasses.field(default_factory=list[int])
    waiting: list[Delta] = dataclasses.field(default_factory=list[Delta])
    finish: str = ""
    error: str = ""
    news: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def take(self) -> list[Delta]:
        """What has come since the last call, one delta a version; the finish with the last."""
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
        seed: of what has no seed of its own.
    """

    has_model = True

    def __init__(self, model: str, section: EngineSection, seed: int = 0) -> None:
        self._directory, self._section, self._seed = model, section, seed
        self._interval = min(8, section.chunk_tokens)
        self._model: Any = None
        self._manager: Any = None
        self._facts: ModelFacts | None = None
        self._limit = 0  # tokens of a prompt and its response
        self._drawing = Drawing()
        self._cores: Sequence[int] = ()  # that the library's thread is still to be kept to
        self._forward = threading.Lock()  # held while the model computes, or is written to
        self._requests: dict[str, _Request] = {}
        self._by_inner: dict[str, _Request] = {}
        self._ids = itertools.count()
        self._loading = asyncio.Lock()
        self._held = False  # requests wait for new weights
        self._version: int | None = None

    async def start(self) -> EngineInfo:
        self._facts = facts = read_model_facts(self._directory)
        try:
            router = _Router(asyncio.get_running_loop(), self._heard)
            await asyncio.to_thread(self._build, router)
            self._limit = min(facts.max_model_tokens or self._cached(), self._cached())
            first = Sampling(id="first", tokens=[0], max_tokens=1, temperature=1.0, seed=0)
            async for _ in self.generate(first):
                pass
        except Exception as error:  # whatever fails below it
            await self.close()
            raise EngineError(
                f"transformers {transformers.__version__} does not start with "
                f"{self._directory}: {type(error).__name__}: {error}"
            ) from error
        return EngineInfo(
            slots=self._section.slots,
            vocabulary=facts.vocabulary,
            max_model_tokens=self._limit,
            about={
                "engine": f"transformers {transformers.__version__}",
                "device": self._model.device.type,
                "dtype": str(self._model.dtype).removeprefix("torch."),
                "attention": str(self._model.config._attn_implementation),  # noqa: SLF001
            },
        )

    async def generate(self, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        if sampling.max_tokens < 1 or len(sampling.tokens) + sampling.max_tokens > self._limit:
            raise ValueError(
                f"{len(sampling.tokens)} tokens and {sampling.max_tokens} new ones do not fit "
                f"a model and cache of {self._limit}"
            )
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
                await asyncio.to_thread(self._copy, Path(directory) / FILE)
            except Exception as error:  # half loaded: it must not sample on
                raise EngineError(f"transformers cannot load {directory}: {error}") from error
            self._version, self._held = version, False
            for request in list(self._requests.values()):
                if not request.finish:
                    self._submit(request)

    async def logprobs(self, tokens: Sequence[int], temperature: float) -> list[float]:
        """By the path that samples: each position is asked for one token, which is told."""
        positions = spread(len(tokens) - 1, PROBES)
        found = await asyncio.gather(
            *(self._logprob(tokens[: i + 1], tokens[i + 1], temperature) for i in positions)
        )
        answer = [math.nan] * (len(tokens) - 1)
        for position, logprob in zip(positions, found, strict=True):
            answer[position] = logprob
        return answer

    def failure(self) -> str:
        if self._manager is None or self._manager.is_running():
            return ""
        why = self._manager.background_thread_status.fatal_error
        return f"the thread of transformers' continuous batching has ended: {why}"

    async def close(self) -> None:
        await self.abort(list(self._requests))
        manager, self._manager = self._manager, None
        if manager is not None and manager.is_running():
            await asyncio.to_thread(manager.stop, block=True, timeout=_STOP_S, hard_stop=True)
        if manager is not None:
            manager.destroy()
        self._model = manager = None
        gc.collect()  # the library's parts know each other in rings, with the cache among them
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

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
                for delta in request.take():
                    yield delta
                    if delta.finish:
                        return
        finally:
            self._withdraw(request)
            self._requests.pop(request.sampling.id, None)

    def _submit(self, request: _Request) -> None:
        """Hand a request to the library, with the tokens that it has."""
        sampling, done = request.sampling, len(request.tokens)
        assert self._facts is not None
        request.inner, request.heard = f"{next(self._ids)}", 0
        request.version = self._version
        self._by_inner[request.inner] = request
        draw = Draw(sampling.seed, position=done)
        if request.forced is not None:
            draw.forced = request.forced
        taken = self._manager.add_request(
            [*sampling.tokens, *request.tokens],
            request_id=request.inner,
            max_new_tokens=sampling.max_tokens - done,
            streaming=True,
            eos_token_id=-1 if sampling.ignore_stop else list(self._facts.stop_tokens),
            temperature=float(sampling.temperature),
            draw=draw,
        )
        if taken is None:
            request.error = "the library takes no more requests"
            request.news.set()

    def _withdraw(self, request: _Request) -> None:
        """Its slot is free at the next forward pass; what still comes of it is not heard."""
        if request.inner:
            self._by_inner.pop(request.inner, None)
            if self._manager is not None:
                self._manager.cancel_request(request.inner)
            request.inner = ""

    def _heard(self, outputs: list[Any]) -> None:
        """New tokens of one forward pass."""
        for output in outputs:
            request = self._by_inner.get(output.request_id)
            if request is None:
                # Withdrawn; the library forgets a cancellation that overtakes its request.
                if not output.is_finished() and self._manager is not None:
                    self._manager.cancel_request(output.request_id)
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
        assert self._facts is not None
        stops = () if request.sampling.ignore_stop else self._facts.stop_tokens
        return "stop" if request.tokens and request.tokens[-1] in stops else "length"

    async def _logprob(self, before: Sequence[int], token: int, temperature: float) -> float:
        """Logprob of `token` after `before`."""
        sampling = Sampling(
            id=f"probe-{next(self._ids)}",
            tokens=before,
            max_tokens=1,
            temperature=temperature,
            seed=0,
            ignore_stop=True,
        )
        async for delta in self._run(_Request(sampling, forced=token)):
            for logprob in delta.logprobs:
                return logprob
        return math.nan

    # --- the model --------------------------------------------------------------------------

    def _build(self, router: OutputRouter) -> None:
        """Load the model and start the library's thread; takes seconds."""
        chatter.disable_progress_bar()
        chatter.set_verbosity_error()
        section = self._section
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        if device.type == "cpu":
            try:
                self._cores = engine_cores(section.cpu_cores, os.sched_getaffinity(0))
            except CoresError as error:
                raise EngineError(str(error)) from error
            torch.set_num_threads(len(self._cores))
        # Where 5.17 wants `paged|sdpa` later versions want `sdpa`.
        newer = "auto_switch_to_flash" in _FIELDS
        model: Any = AutoModelForCausalLM.from_pretrained(
            self._directory,
            dtype=section.dtype if section.dtype == "auto" else getattr(torch, section.dtype),
            trust_remote_code=False,
            attn_implementation="sdpa" if newer else "paged|sdpa",
        )
        self._model = model.to(device).eval().requires_grad_(False)
        requests = section.slots + 2 * PROBES
        settings: dict[str, Any] = {
            "return_logprobs": True,
            "max_requests_per_batch": requests,
            "max_batch_tokens": max(BATCH_TOKENS[device.type], requests),
            "max_memory_percent": self._memory_share(device),
            # A block of old weights would be found by its tokens after a load.
            "allow_block_sharing": False,
            "seed": self._seed,
        }
        if newer:
            settings["auto_switch_to_flash"] = False
        manager: Any = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=True, max_new_tokens=1, eos_token_id=-1),
            continuous_batching_config=ContinuousBatchingConfig(**settings),
        )
        if attention.fits(self._model.config):
            self._model.set_attn_implementation(attention.NAME)
        manager.output_router = router
        manager.logit_processor = self._drawing.processors()
        # The only names of the library that are its own: with them a graph is captured as it
        # will sample, and the model is not written to while it computes.
        processor = manager.batch_processor = manager._create_batch_processor()  # noqa: SLF001
        processor.model_runner._sample = self._drawing.sample  # noqa: SLF001
        step, forward, pin = processor._generation_step, self._forward, self._pin  # noqa: SLF001

        def alone(model: Any) -> None:
            with forward:
                pin()
                step(model)

        processor._generation_step = alone  # noqa: SLF001
        self._manager = manager
        manager.warmup()
        manager.start()

    def _memory_share(self, device: torch.device) -> float:
        """Of the memory that the library counts as free: all it may use beside the weights."""
        if device.type == "cpu":
            memory = psutil.virtual_memory()
            free = memory.total - psutil.Process().memory_info().rss
            return min(1.0, self._section.cpu_kv_gib * _GIB / free)
        free, total = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_reserved(device)
        wanted = self._section.gpu_memory * total - used
        if not 0 < wanted <= free:
            raise EngineError(
                f"engine.gpu_memory {self._section.gpu_memory} of {total / _GIB:.1f} GiB, less the "
                f"weights' {used / _GIB:.1f}, leaves {wanted / _GIB:.1f} GiB for the cache, but "
                f"{free / _GIB:.1f} are free: set it lower, or free the GPU"
            )
        return wanted / (total - used)

    def _cached(self) -> int:
        """Tokens that the cache holds."""
        config = self._manager.continuous_batching_config
        page = config.page_size if "page_size" in _FIELDS else config.block_size
        return int(config.num_blocks) * int(page)

    def _pin(self) -> None:
        """On a CPU: the thread that computes keeps to the engine's cores."""
        if self._cores:
            os.sched_setaffinity(threading.get_native_id(), self._cores)
            self._cores = ()

    def _copy(self, file: Path) -> None:
        """Write the file's tensors over those served. Raises ValueError if they do not fit."""
        started = time.monotonic()
        with self._forward, torch.no_grad(), safe_open(file, framework="pt") as tensors:
            if self._model.device.type == "cuda":
                torch.cuda.synchronize()
            names = set(tensors.keys())
            own: dict[str, torch.Tensor] = dict(self._model.named_parameters())  # tied ones once
            if missing := sorted(own.keys() - names):
                raise ValueError(f"{file} lacks {len(missing)} parameters, {missing[0]} first")
            for name, parameter in own.items():
                found = tensors.get_tensor(name)
                if found.shape != parameter.shape:
                    raise ValueError(
                        f"{file}: {name} has shape {tuple(found.shape)}, the model's has "
                        f"{tuple(parameter.shape)}"
                    )
                parameter.copy_(found)
            if self._model.device.type == "cuda":
                torch.cuda.synchronize()
        log.info("%s loaded in %.3f s", file, time.monotonic() - started)


def spread(count: int, at_most: int) -> list[int]:
    """Up to `at_most` of 0..count-1, evenly, both ends included.

    >>> spread(9, 3)
    [0, 4, 8]
    """
    if count <= at_most:
        return list(range(count))
    return [round(i * (count - 1) / (at_most - 1)) for i in range(at_most)]
