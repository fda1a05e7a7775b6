"""vLLM as an engine: `AsyncLLM` starts it and its core samples; `vllm_outputs` reads what it sends.

Keeps three promises: logprobs are of the distribution that was sampled from (after temperature,
min_p, top_k and top_p), a delta has one version of the weights, and after `close` none of
vLLM's processes is left. Importing this module does not import vLLM: its environment must be
set first.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engines.backends.vllm_outputs import CoreOutputs, as_engine_error
from engines.base import Delta, EngineError, EngineInfo, Sampling, TensorCheck
from engines.model_facts import ModelFacts, read_model_facts
from engines.pace import FREE
from engines.weights import FILE
from engines.weights_probe import PROBES, probe_one_by_one
from pipeline.config.pace import engine_pace
from pipeline.config.schema import EngineConfig
from pipeline.system.cpu_cores import engine_cores
from pipeline.wire.fields import Drawing, PacedSteps

_SHUTDOWN_S = 2.0  # then vLLM kills its processes: there is nothing to wait for


class VllmEngine:
    """One vLLM engine. Start it from the main thread: its processes die with that thread.

    Args:
        model: a Hugging Face directory.
        section: settings of the engines.
        seed: for whatever has no seed of its own.
    """

    has_model = True

    def __init__(self, model: str, section: EngineConfig, seed: int = 0) -> None:
        self._model, self._section, self._seed = model, section, seed
        self._facts: ModelFacts | None = None
        self._llm: Any = None
        self._outputs: CoreOutputs | None = None
        self._loading = asyncio.Lock()
        self._probes = 0
        self._paced = False

    async def start(self) -> EngineInfo:
        self._facts = facts = read_model_facts(self._model)
        try:
            self._llm = async_llm(self._model, self._section, self._seed)
            self._outputs = CoreOutputs(self._llm, self._section.chunk_tokens)
            async for _ in self.generate(
                Sampling(id="first", tokens=[0], max_tokens=1, drawing=Drawing(), seed=0)
            ):
                pass
            await self._llm.collective_rpc("darts_readable", args=(self._model,))
            if cost := engine_pace(self._section.pace):
                await self._llm.collective_rpc("darts_pace", args=(msgspec.to_builtins(cost),))
                self._paced = True
        except Exception as error:  # anything may fail inside vLLM
            await self.close()
            raise EngineError(f"vLLM does not start with {self._model}: {error}") from error
        import vllm
        from vllm.platforms import current_platform

        return EngineInfo(
            slots=self._section.slots,
            vocabulary=facts.vocabulary,
            max_model_tokens=int(self._llm.model_config.max_model_len),
            about={
                "engine": f"vllm {vllm.__version__}",
                "device": str(current_platform.device_type),
                "dtype": str(self._llm.model_config.dtype).removeprefix("torch."),
            },
        )

    def generate(self, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        assert self._facts is not None
        assert self._outputs is not None
        params = sampling_params(sampling, self._facts.stop_tokens)
        return self._outputs.generate(sampling.id, sampling.tokens, params)

    async def abort(self, ids: Sequence[str]) -> None:
        assert self._outputs is not None
        with as_engine_error():
            await self._outputs.abort(ids)

    async def load_weights(self, directory: str, version: int) -> None:
        async with self._loading:
            try:
                # Unless the cache is cleared, requests in flight and prefixes keep old keys and
                # values; running requests are prefilled again.
                await self._llm.pause_generation(mode="keep", clear_cache=True)
                await self._llm.collective_rpc("darts_reload", args=(directory,))
                await self._llm.update_weight_version(str(version))
                await self._llm.resume_generation()
            except Exception as error:  # half loaded: it must not sample any more
                raise EngineError(f"vLLM cannot load {directory}: {error}") from error

    async def check_tensors(self, directory: str, checksums: Mapping[str, str]) -> TensorCheck:
        with as_engine_error():
            found = await self._llm.collective_rpc(
                "darts_check", args=(str(Path(directory) / FILE), dict(checksums))
            )
        equal = [set(names) for names, _ in found]
        different = sorted({name for _, names in found for name in names})
        # A tensor that one rank cannot show is not checked.
        return TensorCheck(tuple(sorted(set[str].intersection(*equal))), tuple(different))

    async def logprobs(self, tokens: Sequence[int], temperature: float) -> list[float]:
        return await probe_one_by_one(
            tokens, lambda before, token: self._logprob(before, token, temperature)
        )

    async def take_paced(self) -> PacedSteps:
        if not self._paced:
            return PacedSteps()
        with as_engine_error():
            counts = await self._llm.collective_rpc("darts_paced")
        return PacedSteps(**counts[0])  # all ranks of an engine keep the same steps

    def failure(self) -> str:
        return "vLLM's core process has died" if self._llm.errored else ""

    async def close(self) -> None:
        llm, self._llm = self._llm, None
        if llm is not None:
            outputs: asyncio.Task[None] | None = llm.output_handler
            llm.shutdown(timeout=_SHUTDOWN_S)
            if outputs is not None:
                await asyncio.wait([outputs], timeout=_SHUTDOWN_S)
            # vLLM leaves the context of its sockets to the garbage collector, which warns.
            llm.engine_core.resources.ctx.destroy(linger=0)

    async def _logprob(self, before: Sequence[int], token: int, temperature: float) -> float:
        """Return the logprob of `token` after `before`; samples one token, which is thrown away."""
        from vllm import SamplingParams

        assert self._outputs is not None
        self._probes += 1
        params = SamplingParams(
            temperature=temperature,
            max_tokens=1,
            seed=0,
            logprob_token_ids=[token],
            detokenize=False,
            skip_clone=True,
        )
        found = math.nan
        name = f"{FREE}probe-{self._probes}"
        async for delta in self._outputs.generate(name, before, params, column=1):
            for logprob in delta.logprobs:
                found = logprob
        return found


def wrong_variables(
    known: Mapping[str, Callable[[], object]], environment: Mapping[str, str]
) -> Iterator[str]:
    """Yield a complaint for each variable of vLLM's that it cannot read: its own error says what
    it could not convert, and seldom of which.

    Args:
        known: name -> how vLLM reads it.
    """
    for name, read in known.items():
        if name in environment:
            try:
                read()
            except Exception as error:  # whatever a conversion raises
                found = f"the variable {name} is {environment[name]!r:.200}"
                yield f"{found}: {type(error).__name__}: {error!s:.300}; mend it or unset it"


def async_llm(model: str, section: EngineConfig, seed: int) -> Any:
    """Make `AsyncLLM` with darts' settings. Call it before anything imports vLLM."""
    _set_environment(section)
    from vllm import AsyncEngineArgs, envs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    if wrong := list(wrong_variables(envs.environment_variables, os.environ)):
        raise EngineError("; ".join(wrong))
    on_cpu = current_platform.is_cpu()
    options: dict[str, Any] = (
        # Given a name, vLLM on a CPU would put the model into a process beside its core, and
        # each would spin while it waits for the other: a second core is busy, and stage and
        # learner wait behind it. A class is used as it is.
        {
            "enforce_eager": True,
            "distributed_executor_backend": UniProcExecutor,
            # A seeded request whose prefill is cut in two ends vLLM's core ("CPU Generator does
            # not use offset"): after a reload with many requests in flight all are prefilled.
            # vLLM warns that whole prefills are untested; here the probe checks every version.
            "enable_chunked_prefill": False,
        }
        if on_cpu
        else {
            "gpu_memory_utilization": section.gpu_memory,
            "tensor_parallel_size": section.tensor_parallel,
        }
    )
    options |= {
        "max_model_len": -1,  # the model's own, or what the cache can hold
        # Cleared before new weights. On a CPU prefill is cheap; on a GPU the samples of a
        # prompt share it.
        "enable_prefix_caching": not on_cpu,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **section.vllm,
    }
    arguments = AsyncEngineArgs(
        model=model,
        skip_tokenizer_init=True,
        trust_remote_code=False,
        dtype=section.dtype,  # pyright: ignore[reportArgumentType]
        max_num_seqs=section.slots + 2 * PROBES,
        logprobs_mode="processed_logprobs",
        seed=seed,
        worker_extension_cls="engines.backends.vllm_extension.Reload",
        **options,
    )
    if not on_cpu:
        return AsyncLLM.from_engine_args(arguments)
    with _threads_on(engine_cores(section.cpu_cores, os.sched_getaffinity(0))):
        return AsyncLLM.from_engine_args(arguments)


def sampling_params(sampling: Sampling, stop_tokens: Sequence[int]) -> Any:
    """Make vLLM's parameters: each token with its own logprob and nothing else."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=sampling.drawing.temperature,
        top_p=sampling.drawing.top_p,
        top_k=sampling.drawing.top_k,
        min_p=sampling.drawing.min_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed & (2**63 - 1),  # what torch's generators take
        stop_token_ids=[] if sampling.ignore_stop else [*stop_tokens, *sampling.stop_tokens],
        ignore_eos=sampling.ignore_stop,
        logprobs=0,  # of the sampled token
        detokenize=False,
        skip_clone=True,  # nobody else has them
    )


def _set_environment(section: EngineConfig) -> None:
    """Set the variables that vLLM reads when it is imported."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(section.cpu_kv_gib)
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    # The core in a process of its own: in ours it would block every stream.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    for name, value in (
        ("VLLM_LOGGING_LEVEL", "WARNING"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("VLLM_CONFIGURE_LOGGING", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _threads_on(cores: Sequence[int]) -> Generator[None, None, None]:
    """Pin processes started inside to these cores, with one OpenMP thread for each."""
    ours = {
        "OMP_NUM_THREADS": str(len(cores)),
        "OMP_PLACES": f"{{{','.join(map(str, cores))}}}",
        "OMP_PROC_BIND": "true",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
