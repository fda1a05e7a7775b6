"""Publishes weights for the engines: a safetensors file per version, and its manifest.

A version appears under its name only when it is complete (written beside it, then
renamed); at most two versions are there, so that an engine may still read the one
before. It lies in memory, or on the disk where memory has no room: others may fill it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import mmap
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from learner import lora
from learner.forward.lm_head import token_logprobs
from learner.rounded_weights import is_rounded, rounded_weights
from pipeline.system.private_dirs import make_private
from pipeline.wire.messages import Manifest

log = logging.getLogger(__name__)

FILE = "model.safetensors"
PROBE_TOKENS = 144
"""Length of the probe: more than one key/value block (vLLM: 16 tokens on a GPU, 128 on a CPU)."""
PROBE_TEMPERATURES = (1.0, 0.7)
MOST_CHECKSUMS = 8192
"""Tensors of a version with a checksum: a report to the stage may have 1 MiB. The tensors of larger
models are experts, which no engine shows one by one."""
_SEED = 20605


def probe_tokens(vocabulary: int, avoid: Collection[int], length: int = PROBE_TOKENS) -> list[int]:
    """Return the fixed token ids of the probe, none of `avoid` (EOS, padding)."""
    allowed = [token for token in range(vocabulary) if token not in avoid]
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.randint(len(allowed), (length,), generator=generator)
    return [allowed[int(index)] for index in drawn]


@torch.no_grad()
def probe_logprobs(
    model: Any, probe: list[int], dtype: torch.dtype | None = None
) -> dict[str, list[float]]:
    """Return temperature -> logprobs of probe[i + 1] given the tokens before it.

    Args:
        dtype: of the engines' weights; the logprobs are of weights rounded to it. None: of the
            model as it is.
    """
    device = next(model.parameters()).device
    tokens_BL = torch.tensor([probe], device=device)
    rounds = dtype is not None and is_rounded(model, dtype)
    with rounded_weights(model, dtype) if rounds and dtype else contextlib.nullcontext():
        logits_BTV = model(input_ids=tokens_BL, use_cache=False).logits[:, :-1]
    return {
        str(temperature): token_logprobs(logits_BTV, tokens_BL[:, 1:], temperature)[0].tolist()
        for temperature in PROBE_TEMPERATURES
    }


def checkpoint_tensors(model: Any, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the weights under their Hugging Face names; a tied head is left out, as there.

    Args:
        dtype: rounds to this type, after adapters are merged; None: no rounding.
    """
    tensors = {name: p.detach() for name, p in model.named_parameters()}  # shared ones appear once
    known = {p.data_ptr() for p in tensors.values()}
    for name, value in model.state_dict().items():  # persistent buffers
        if name not in tensors and value.data_ptr() not in known:
            tensors[name] = value
    if lora.is_attached(model):
        tensors = lora.merged_tensors(model, tensors)
        lora.check_merged(model, tensors)
    named = revert_weight_conversion(model, tensors)
    return {
        name: (value.to(dtype) if dtype and value.is_floating_point() else value).contiguous()
        for name, value in named.items()
    }


def tensor_checksums(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name -> xxh3_64 of a tensor's bytes, for a manifest; the first `MOST_CHECKSUMS`."""
    return {
        name: xxhash.xxh3_64_hexdigest(tensor.reshape(-1).view(torch.uint8).cpu().numpy().data)
        for name, tensor in itertools.islice(tensors.items(), MOST_CHECKSUMS)
    }


def weights_checksum(path: Path) -> str:
    """Return the xxh3_128 of a file, as in the manifest."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return xxhash.xxh3_128_hexdigest(view)


class PublishError(Exception):
    """A version could be written nowhere; the message says why, by place."""

    says_all = True  # see `learner.failures`


class WeightPublisher:
    """Writes versions into a directory, and removes those that are not needed any more.

    Args:
        dtype: the engines' type, which weights are rounded to; None: no rounding.
        spare: where a version goes that finds no room in `directory`; None: nowhere.
    """

    def __init__(
        self,
        directory: Path,
        probe: list[int],
        dtype: torch.dtype | None = None,
        spare: Path | None = None,
    ) -> None:
        self._dtype = dtype
        self._places = [directory, *([spare] if spare else [])]
        self._probe = probe
        self._newest: int | None = None

    def publish_version(
        self,
        model: Any,
        version: int,
        logprobs: dict[str, list[float]],
        *,
        rounded_after: bool = False,
    ) -> Manifest:
        """Write `model`, whose probe has these `logprobs`, as `version`.

        Args:
            rounded_after: the engines' weights are coarser than those that `logprobs` are of.

        Raises: PublishError if it fits nowhere, LoraError if an adapter is not in its weight.
        """
        tensors = checkpoint_tensors(model, self._dtype)
        # Of the tensors, not of the file: they prove what was written, too.
        checksums = tensor_checksums(tensors)
        path = self._written(tensors, version)
        self._prune({version, self._newest})
        self._newest = version
        return Manifest(
            version=version,
            directory=str(path.parent),
            bytes=path.stat().st_size,
            checksum=weights_checksum(path),
            probe=self._probe,
            logprobs=logprobs,
            tensors=checksums,
            unlisted=len(tensors) - len(checksums),
            rounded_after=rounded_after,
        )

    def _written(self, tensors: Mapping[str, Tensor], version: int) -> Path:
        """Write a version into the first place that takes it; returns its file."""
        refusals: list[str] = []
        for place in self._places:
            try:
                path = self._write(place, tensors, version)
                for other in self._places:
                    if other != place:  # of a learner before this one
                        shutil.rmtree(other / path.parent.name, ignore_errors=True)
                return path
            except (OSError, SafetensorError) as error:
                refusals.append(f"{place}: {error}")
                log.warning("version %d is not in %s: %s", version, place, error)
        raise PublishError(
            f"the weights of version {version} found no room: {'; '.join(refusals)}; make room "
            "there, and resume from the newest checkpoint"
        )

    def _write(self, place: Path, tensors: Mapping[str, Tensor], version: int) -> Path:
        """Raises: OSError or SafetensorError, with nothing left of it."""
        make_private(place)  # logind empties /dev/shm at the end of a user's session
        self._make_room(place, sum(tensor.nbytes for tensor in tensors.values()))
        final, draft = place / f"v{version}", place / f".v{version}-{os.getpid()}"
        draft.mkdir(mode=0o700)
        try:
            save_file(dict(tensors), draft / FILE, metadata={"format": "pt"})
            if final.exists():  # from a learner before this one; readers keep their mapping
                shutil.rmtree(final)
            draft.rename(final)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return final / FILE

    def _make_room(self, place: Path, needed: int) -> None:
        """See that so many bytes are free, so that no memory is filled to its end: others who
        share it are killed when they touch a page that it has not. Raises: OSError."""
        if shutil.disk_usage(place).free < needed:
            self._prune({self._newest})
        if (free := shutil.disk_usage(place).free) < needed:
            raise OSError(errno.ENOSPC, f"{needed} bytes are needed, {free} are free")

    def _prune(self, keep: Collection[int | None]) -> None:
        names = {f"v{version}" for version in keep if version is not None}
        for place in self._places:
            for path in place.iterdir() if place.is_dir() else ():
                if path.name not in names and path.name.startswith(("v", ".v")):
                    shutil.rmtree(path, ignore_errors=True)
