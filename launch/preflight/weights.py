"""Looks at a model's weight files before anything starts, by their headers alone.

Found so: pointers of git-lfs, shards that are missing or cut short, weights in pickles, adapters
and other formats in place of a model, tensors that do not fit config.json, and LoRA targets that
no layer has. A header is what safetensors defines: 8 bytes of length, then JSON.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from pipeline.config.model_files import ModelError, is_pointer, read_facts, read_json
from pipeline.config.schema import Config
from pipeline.config.trained import learner_ranks
from pipeline.plugins.ranges import did_you_mean
from pipeline.system.untrusted_files import open_regular

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HEADER_BYTES = 100_000_000  # the limit of safetensors itself
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "output_layer.weight")
_CURE = (
    "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...) of transformers writes "
    "safetensors"
)
_OTHERS = (
    ("pytorch_model*.bin*", f"weights in pickles, which darts does not read; {_CURE}"),
    ("adapter_model*", "an adapter alone; merge it with its base model, and name what you saved"),
    ("adapter_config.json", "an adapter alone; merge it with its base model, and name that"),
    ("*.gguf", f"weights in GGUF, for llama.cpp; name the model that it was made from, or {_CURE}"),
    ("consolidated*", f"weights by another format's names; {_CURE}"),
    ("*.pt*", f"weights in pickles, which darts does not read; {_CURE}"),
    ("tf_model.h5", f"weights of TensorFlow; {_CURE}"),
    ("flax_model.msgpack", f"weights of Flax; {_CURE}"),
    ("*.onnx", "a model of ONNX, which cannot be trained; name the one that it was made from"),
)
"""What lies there in place of safetensors -> what it is."""


_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' name of a type -> torch's."""


class Tensor(msgspec.Struct, frozen=True):
    """One tensor by its header."""

    shape: tuple[int, ...]
    data_offsets: tuple[int, int]
    dtype: str = ""


def weights_problems(config: Config) -> list[str]:
    """Why the weights of the run's models cannot be loaded, a line each."""
    model = Path(config.model)
    found: list[str] = []
    tensors = _read(model, found)
    if tensors is not None and not found:
        found += _misfits(model, tensors)
        if config.learner.lora is not None and learner_ranks(config):
            found += lora_problems(config.learner.lora.targets, tensors)
    if config.learner.reference_folder:
        _read(Path(config.learner.reference_folder), found)
    return found


def weights_line(config: Config) -> str:
    """How the weights are stored, trained and served, with what is lost on the way.

    Call it once `weights_problems` has found none.
    """
    model = Path(config.model)
    tensors = [tensor for path in _files(model) for tensor in header_of(path).values()]
    bytes_of: Counter[str] = Counter()
    for tensor in tensors:
        bytes_of[_DTYPES.get(tensor.dtype, tensor.dtype)] += math.prod(tensor.shape)
    stored = bytes_of.most_common(1)[0][0] if bytes_of else "nothing"
    named = read_facts(model).dtype.removeprefix("torch.")
    trained = config.learner.dtype if learner_ranks(config) else ""
    served = config.engine.dtype
    line = f"{stored} on disk"
    line += f", trained in {trained}" if trained else ""
    line += f", served in {f'the dtype of config.json ({named})' if served == 'auto' else served}"
    if named and named != stored:
        line += f"; config.json says {named}"
    finer = {"float32": ("bfloat16", "float16"), "float16": ("bfloat16",)}
    if trained in finer.get(stored, ()):
        line += f"; they are rounded to {trained} when they are loaded"
    return line


def _read(directory: Path, problems: list[str]) -> dict[str, Tensor] | None:
    """Tensors by name; problems are appended."""
    try:
        files = _files(directory)
        tensors: dict[str, Tensor] = {}
        for path in files:
            tensors |= header_of(path)
    except (ModelError, OSError) as error:
        problems.append(str(error))
        return None
    return tensors


def _files(directory: Path) -> list[Path]:
    """Files of the weights. Raises ModelError if there are none that can be loaded."""
    index, whole = directory / _INDEX, directory / _WHOLE
    if whole.is_file():
        return [whole]
    if index.is_file():
        placed = read_json(index).get("weight_map")
        if not isinstance(placed, dict):
            raise ModelError(f"{index}: no weight_map in it; fetch the file again")
        names = sorted({str(name) for name in cast(dict[str, Any], placed).values()})
        lost = [name for name in names if not (directory / name).is_file()]
        if lost:
            raise ModelError(
                f"{directory / lost[0]}: no such file, but {_INDEX} names it"
                f"{f' ({len(lost)} of {len(names)} are missing)' if len(lost) > 1 else ''}; "
                "fetch it"
            )
        return [directory / name for name in names]
    if parts := sorted(directory.glob("model-*.safetensors")):
        raise ModelError(
            f"{index}: no such file, but {parts[0].name} is a part of several; fetch it"
        )
    for pattern, what in _OTHERS:
        if there := sorted(directory.glob(pattern)):
            raise ModelError(f"{there[0]}: {what}")
    more = sorted(directory.glob("*.safetensors"))
    other = f" ({more[0].name} has another name)" if more else ""
    raise ModelError(f"{directory}: no weights: neither {_WHOLE} nor {_INDEX}{other}; {_CURE}")


def header_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises ModelError if it is none, or not whole."""
    if is_pointer(path):
        raise ModelError(
            f"{path}: a pointer of git-lfs in place of the weights: fetch them with `git lfs pull`"
        )
    try:
        file = open_regular(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; fetch it again") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER_BYTES, max(size - 8, 0)):
            raise ModelError(f"{path}: not a file of safetensors, or cut short; fetch it again")
        content = file.read(length)
    try:
        found = msgspec.json.decode(content, type=dict[str, dict[str, Any]])
        found.pop("__metadata__", None)
        tensors = msgspec.convert(found, dict[str, Tensor])
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not a file of safetensors: {error}; fetch it again") from error
    end = 8 + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if end > size:
        raise ModelError(f"{path}: cut short: {size} bytes, and its header says {end}; fetch it")
    return tensors


def _misfits(directory: Path, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """What config.json says of tensors, and is otherwise."""
    try:
        facts = read_facts(directory)
    except ModelError:
        return  # told by who reads it
    config = directory / "config.json"
    rows = next((t.shape[0] for name in _EMBEDDINGS for n, t in tensors.items()
                 if n.endswith(name) and len(t.shape) == 2), 0)  # fmt: skip
    if rows and facts.vocabulary and rows != facts.vocabulary:
        yield (
            f"{config}: vocab_size is {facts.vocabulary}, and the embedding of the weights has "
            f"{rows} rows; save the model again, or correct the file"
        )
    head = any(name.endswith(_HEADS) for name in tensors)
    if rows and facts.tied is False and not head:
        yield (
            f"{config}: tie_word_embeddings is false, and the weights have no output layer "
            "(lm_head.weight): it would begin at random; correct one of them"
        )


def lora_problems(targets: tuple[str, ...], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Targets that no linear layer of these weights has."""
    layers = [name.removesuffix(".weight") for name, t in tensors.items() if len(t.shape) == 2]
    last = sorted({name.rpartition(".")[2] for name in layers})
    for target in targets:
        if target == "all-linear" or any(
            name == target or name.endswith(f".{target}") for name in layers
        ):
            continue
        hint = did_you_mean(target, last)
        yield (
            f"learner.lora.targets: no layer is named {target!r}{hint}; the model has "
            f"{', '.join(last)[:200]}"
        )
