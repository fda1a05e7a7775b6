"""Wraps transformers' continuous batching and its model in the few calls that an engine needs.

Private names of the library are used here, in `transformers_sampling` and in
`transformers_attention` only, for 5.17 and 5.19. Invariant: the weights are never written
while the model computes.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.utils import logging as chatter

from engines.backends import transformers_attention
from engines.backends.held_tensors import Pairs, compare_with_file
from engines.backends.transformers_sampling import Draw, TokenSampling
from engines.base import EngineError, TensorCheck
from engines.pace import Load, StepPace
from pipeline.config.pace import engine_pace
from pipeline.config.schema import EngineConfig
from pipeline.system.cpu_cores import CoresError, engine_cores
from pipeline.wire.fields import PacedSteps

log = logging.getLogger("engines.backends.transformers_batching")

BATCH_TOKENS = {"cuda": 2048, "cpu": 512}
"""Most tokens of one forward pass. The mask of the attention `sdpa` is that times the cache."""
_STATIC = (
    *("use_cuda_graph", "q_padding_interval_size", "kv_padding_interval_size"),
    *("default_compile_level", "varlen_compile_config", "decode_compile_config"),
)
"""Arguments that ask for captured graphs, or for compiled code."""
_STOP_S = 10.0  # wait for the library's thread: it ends between two forward passes
_GIB = 1 << 30
_FIELDS = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}


class Batching:
    """The model, and the thread in which the library samples from it.

    Args:
        directory: a Hugging Face model.
        section: settings of the engines.
        requests: most that run at once, probes included.
        router: receives new tokens, in the library's thread.
        truncates: requests may ask for a part of the tokens.

    Raises: EngineError if the settings do not fit the machine.
    """

    def __init__(
        self,
        directory: str,
        section: EngineConfig,
        requests: int,
        seed: int,
        router: OutputRouter,
        *,
        truncates: bool,
    ) -> None:
        chatter.disable_progress_bar()
        chatter.set_verbosity_error()
        # It warns about each request that is cancelled before it has a block.
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self._section = section
        self._pace: StepPace | None = None  # none while it warms up
        self._forward = threading.Lock()  # held while the model computes, or weights are written
        self._cores: Sequence[int] = ()  # the library's thread is not pinned to them yet
        if device.type == "cpu":
            try:
                self._cores = engine_cores(section.cpu_cores, os.sched_getaffinity(0))
            except CoresError as error:
                raise EngineError(str(error)) from error
            torch.set_num_threads(len(self._cores))
        given = dict(section.transformers)
        asked = given.pop("attn_implementation", "")
        newer = "auto_switch_to_flash" in _FIELDS
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=section.dtype if section.dtype == "auto" else getattr(torch, section.dtype),
            trust_remote_code=False,
            attn_implementation=_named(asked or "sdpa", newer),
        )
        self._model = model.to(device).eval().requires_grad_(False)
        settings: dict[str, Any] = {
            "return_logprobs": True,
            "max_requests_per_batch": requests,
            "max_batch_tokens": max(BATCH_TOKENS[device.type], requests),
            "max_memory_percent": self._memory_share(device),
            # After a load, blocks of the old weights would be found by their tokens.
            "allow_block_sharing": False,
            "seed": seed,
            **given,
        }
        if newer:
            settings["auto_switch_to_flash"] = False
        self._manager: Any = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=True, max_new_tokens=1, eos_token_id=-1),
            continuous_batching_config=ContinuousBatchingConfig(**settings),
        )
        static = any(given.get(name) for name in _STATIC)  # lengths are planned in every pass
        if not asked and not static and transformers_attention.attends_to_all(self._model.config):
            self._model.set_attn_implementation(transformers_attention.NAME)
        # A captured graph does the same whatever the requests of a step ask for.
        sampling = TokenSampling(always_truncates=truncates and device.type == "cuda")
        self._manager.output_router = router
        self._manager.logit_processor = sampling.processors()
        # Made before the warm-up, so that captured graphs include the sampling.
        processor = self._manager._create_batch_processor()  # noqa: SLF001
        self._manager.batch_processor = processor
        processor.model_runner._sample = sampling.sample_tokens  # noqa: SLF001
        step = processor._generation_step  # noqa: SLF001

        def alone(model: Any) -> None:
            with self._forward:
                self._pin()
                if self._pace is not None:
                    self._pace.begin(_load_of(processor.inputs_and_outputs.requests_in_batch))
                step(model)
            if self._pace is not None:
                self._synchronize()
                self._pace.end()

        processor._generation_step = alone  # noqa: SLF001
        self._manager.warmup()
        if cost := engine_pace(section.pace):
            self._pace = StepPace(cost)
        self._manager.start()

    @property
    def about(self) -> dict[str, str]:
        """Device, dtype and attention of the model."""
        return {
            "device": self._model.device.type,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "attention": str(self._model.config._attn_implementation),  # noqa: SLF001
        }

    def take_paced(self) -> PacedSteps:
        """Return the counts of paced steps since the last call."""
        return PacedSteps() if self._pace is None else self._pace.take_counts()

    @property
    def cached_tokens(self) -> int:
        """Number of tokens that the cache holds."""
        config = self._manager.continuous_batching_config
        page = config.page_size if "page_size" in _FIELDS else config.block_size
        return int(config.num_blocks) * int(page)

    def add_request(
        self,
        name: str,
        tokens: list[int],
        max_tokens: int,
        stops: Sequence[int],
        temperature: float,
        draw: Draw,
    ) -> bool:
        """Hand in a request; returns False if the library takes no more."""
        taken = self._manager.add_request(
            tokens,
            request_id=name,
            max_new_tokens=max_tokens,
            streaming=True,
            eos_token_id=list(stops) or -1,
            temperature=temperature,
            draw=draw,
        )
        return taken is not None

    def cancel_request(self, name: str) -> None:
        """Free its slot at the next forward pass. Lost if it arrives before its request."""
        self._manager.cancel_request(name)

    def failure(self) -> str:
        """Return why the library's thread has ended; '' while it runs."""
        if self._manager.is_running():
            return ""
        why = self._manager.background_thread_status.fatal_error
        return f"the thread of transformers' continuous batching has ended: {why}"

    def copy_weights(self, file: Path) -> None:
        """Overwrite the weights with the file's tensors. Raises ValueError if they do not fit."""
        started = time.monotonic()
        with self._forward, torch.no_grad(), safe_open(file, framework="pt") as tensors:
            self._synchronize()
            names = set(tensors.keys())
            own: dict[str, torch.Tensor] = dict(
                self._model.named_parameters()
            )  # tied ones appear once
            if missing := sorted(own.keys() - names):
                raise ValueError(
                    f"{file} has no {missing[0]} ({len(missing)} of {len(own)} missing): models "
                    "whose files and modules name tensors differently (mixtures of experts) "
                    "need engine.kind vllm"
                )
            own |= {k: v for k, v in self._model.state_dict().items() if k in names}  # buffers
            for name, parameter in own.items():
                found = tensors.get_tensor(name)
                if found.shape != parameter.shape:
                    raise ValueError(
                        f"{file}: {name} has shape {tuple(found.shape)}, the model's has "
                        f"{tuple(parameter.shape)}"
                    )
                parameter.copy_(found)
            self._synchronize()
        log.info("%s loaded in %.3f s", file, time.monotonic() - started)

    def compare_weights(self, file: Path, checksums: Mapping[str, str]) -> TensorCheck:
        """Compare the weights with a published file; tied ones wherever the model has them."""
        places: dict[str, list[torch.Tensor]] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            places.setdefault(name, []).append(parameter)
        for name, buffer in self._model.state_dict().items():
            places.setdefault(name, []).append(buffer)
        head = self._model.get_output_embeddings()
        embedding = self._model.get_input_embeddings()
        tied = bool(self._model.config.get_text_config().tie_word_embeddings)

        def held(name: str, published: torch.Tensor) -> Pairs:
            found = list(places.get(name, ()))
            if tied and head is not None and any(one is embedding.weight for one in found):
                found.append(head.weight)
            return [(one, published) for one in found]

        return compare_with_file(file, checksums, held)

    def close(self) -> None:
        """End the thread and free the memory."""
        if self._manager.is_running():
            self._manager.stop(block=True, timeout=_STOP_S, hard_stop=True)
        self._manager.destroy()
        del self._manager, self._model
        gc.collect()  # the library's objects, the cache among them, refer to each other in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _memory_share(self, device: torch.device) -> float:
        """Return the share of the free memory that the cache may use."""
        if device.type == "cpu":
            memory = psutil.virtual_memory()
            free = memory.total - psutil.Process().memory_info().rss
            return min(1.0, self._section.cpu_kv_gib * _GIB / free)
        free, total = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_reserved(device)
        wanted = self._section.gpu_memory * total - used
        if not 0 < wanted <= free:
            raise EngineError(
                f"engine.gpu_memory {self._section.gpu_memory} of {total / _GIB:.1f} GiB, minus "
                f"{used / _GIB:.1f} of weights, leaves {wanted / _GIB:.1f} GiB for the cache, but "
                f"{free / _GIB:.1f} GiB are free: set it lower, or free the GPU"
            )
        return wanted / (total - used)

    def _pin(self) -> None:
        """Pin the computing thread to the engine's cores (CPU only)."""
        if self._cores:
            os.sched_setaffinity(threading.get_native_id(), self._cores)
            self._cores = ()

    def _synchronize(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()


def _load_of(requests: Sequence[Any]) -> Load:
    """Return the load of a forward pass from the library's `FutureRequestState`s."""
    load = Load()
    for request in requests:
        state, computed = request.state, request.query_length
        load.add(state.request_id, state.position_offset, computed)
    return load


def _named(asked: str, newer: bool) -> str:
    """Name an attention for continuous batching: 5.17 wants `paged|sdpa`, later ones `sdpa`."""
    paged = {"eager": "paged|eager", "sdpa": "sdpa" if newer else "paged|sdpa"}
    return paged.get(asked, asked)
