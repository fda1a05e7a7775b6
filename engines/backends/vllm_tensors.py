"""Reads the weights that a vLLM model computes with, under their Hugging Face names.

Knows vLLM's packed layers (q, k and v in one), its shards under tensor parallelism, the padding of
its vocabulary and its tied heads. On a CPU vLLM packs a linear layer into a format of its kernel
and drops the weight; what the kernel multiplies with is read by multiplying the unit matrix, which
is exact: each sum has one term that is not zero. Imported in vLLM's process only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)

MOST_PRODUCTS = 2e11
"""Multiplications per check that are spent on reading packed weights: for each weight as many as
its layer has inputs. Layers beyond them are not read. Two busy cores of a Xeon made 6e9 to 8e9 a
second in float32, 17e9 to 31e9 in bfloat16: at most half a minute of the 300 s for a load."""


class HeldTensors:
    """Shows where a model holds a published tensor."""

    def __init__(self, model: Any) -> None:
        self._modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
        packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
        self._packed = {
            part: (whole, index)
            for whole, parts in packed.items()
            if len(parts) > 1
            for index, part in enumerate(parts)
        }
        self._mapper: Any = getattr(model, "hf_to_vllm_mapper", None)
        self._tied = bool(model.config.get_text_config().tie_word_embeddings)
        self._products = 0.0

    def begin(self) -> None:
        """Begin a check: its multiplications are counted from zero."""
        self._products = 0.0

    def pairs(self, name: str, published: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (held, its part of `published`) for each place; [] if one cannot be read."""
        found: list[tuple[Tensor, Tensor]] = []
        for module, index, leaf in self._places(name):
            expected = _shard(published, module, index, leaf)
            if expected is None:
                return []
            for held in self._read(module, index, leaf):
                if held is None or held.shape != expected.shape:
                    return []
                found.append((held, expected))
        return found

    def _places(self, name: str) -> Iterator[tuple[Any, int | None, str]]:
        """Yield every module that holds the tensor: (module, part of a packed one, attribute)."""
        path, _, leaf = name.rpartition(".")
        module, index = self._module(path)
        if module is None and self._mapper is not None:
            path, _, leaf = str(self._mapper.map_name(name) or "").rpartition(".")
            module, index = self._module(path)
        if module is None:
            return
        yield module, index, leaf
        if isinstance(module, VocabParallelEmbedding) and leaf == "weight":
            for head in self._modules.values():  # tied: it has no tensor of its own
                if self._tied and isinstance(head, ParallelLMHead) and head is not module:
                    yield head, None, leaf

    def _module(self, path: str) -> tuple[Any, int | None]:
        if path in self._modules:
            return self._modules[path], None
        parent, _, last = path.rpartition(".")
        whole, index = self._packed.get(last, ("", 0))
        return self._modules.get(f"{parent}.{whole}" if parent else whole), index

    def _read(self, module: Any, index: int | None, leaf: str) -> Iterator[Tensor | None]:
        """Yield what a module looks up and what it multiplies with; None: not readable."""
        embedding = isinstance(module, VocabParallelEmbedding)
        kept: Tensor | None = getattr(module, leaf, None)
        rows = slice(None)
        if embedding:
            rows = slice(0, module.shard_indices.num_org_elements)  # then follows padding
        elif index is not None:
            sizes = list(module.output_partition_sizes)
            rows = slice(sum(sizes[:index]), sum(sizes[: index + 1]))
        multiplies = self._is_head(module) if embedding else isinstance(module, LinearBase)
        packed = leaf == "weight" and multiplies and hasattr(module, "cpu_linear")
        if not packed or (embedding and not isinstance(module, ParallelLMHead)):
            yield None if kept is None else kept.data[rows]
        if packed:
            weight = self._multiplied(module)
            yield None if weight is None else weight[rows]

    def _is_head(self, module: Any) -> bool:
        """Return True for an output layer, be it the input embedding too."""
        return isinstance(module, ParallelLMHead) or any(
            module is other and path.rpartition(".")[2] == "lm_head"
            for path, other in self._modules.items()
        )

    def _multiplied(self, layer: Any) -> Tensor | None:
        """Return the weight, shape (outputs, inputs), that the layer's kernel multiplies with."""
        inputs = int(getattr(layer, "input_size_per_partition", 0) or layer.embedding_dim)
        outputs = int(getattr(layer, "output_size_per_partition", 0) or layer.weight.shape[0])
        products = float(outputs) * inputs * inputs
        if self._products + products > MOST_PRODUCTS:
            return None
        self._products += products
        dtype = layer.weight.dtype  # kept by the empty one, too
        unit = torch.eye(inputs, dtype=dtype, device=layer.weight.device)
        return layer.cpu_linear(unit, layer.weight, None).T


def _shard(published: Tensor, module: Any, index: int | None, leaf: str) -> Tensor | None:
    """Return the part of a published tensor that this rank holds; None where it is not known."""
    if isinstance(module, VocabParallelEmbedding):
        ids = module.shard_indices
        return published[ids.org_vocab_start_index : ids.org_vocab_end_index]
    size, rank = int(getattr(module, "tp_size", 1)), int(getattr(module, "tp_rank", 0))
    if size == 1:
        return published
    if isinstance(module, QKVParallelLinear):
        if index is None:
            return None
        rank = rank // module.num_kv_head_replicas if index else rank
    if isinstance(module, RowParallelLinear):
        return slice_of(published, 1, rank, size) if leaf == "weight" else published
    if isinstance(module, ColumnParallelLinear):
        if index is None and len(module.output_partition_sizes) > 1:
            return None
        rows = int(module.output_partition_sizes[index or 0])
        return slice_of(published, 0, rank, published.shape[0] // rows)
    return published


def slice_of(tensor: Tensor, dimension: int, index: int, count: int) -> Tensor:
    """Return one of `count` equal parts of a tensor.

    >>> slice_of(torch.arange(6), 0, 1, 3).tolist()
    [2, 3]
    """
    return tensor.chunk(count, dimension)[index]
