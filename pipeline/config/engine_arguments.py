"""`engine.vllm` and `engine.transformers`: arguments of the engines' own libraries, by name.

Turns a section into complaints: arguments that darts sets itself, with the reason
and the key that sets them, sizes of engines that no launcher places, names that the installed
library does not know, and values of another plain type. Names and types are
read from its source: importing it takes seconds, and on the machine
that checks a configuration it need not be installed.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.schema import EngineConfig
from pipeline.plugins.ranges import did_you_mean

OWNED: dict[str, dict[str, str]] = {
    "vllm": {
        "model": "set model",
        "tokenizer": "it is the model's",
        "skip_tokenizer_init": "engines get and give token ids",
        "trust_remote_code": "no code that comes with a model is run",
        "dtype": "set engine.dtype",
        "max_num_seqs": "set engine.slots",
        "gpu_memory_utilization": "set engine.gpu_memory",
        "tensor_parallel_size": "set engine.tensor_parallel",
        "stream_interval": "set engine.chunk_tokens",
        "seed": "set seed",
        "hf_token": "models are directories here; settings are kept in files, so set HF_TOKEN",
        "logprobs_mode": "the learner needs the logprobs after temperature",
        "worker_extension_cls": "new weights are loaded by darts' own",
        "distributed_executor_backend": "darts ends the engine's processes, so it chooses them",
    },
    "transformers": {
        "max_requests_per_batch": "set engine.slots",
        "max_memory_percent": "set engine.gpu_memory, or engine.cpu_kv_gib on a CPU",
        "seed": "set seed",
        "return_logprobs": "the learner needs them",
        "per_request_processors": "temperature and seed of each request are darts' own",
        "drop_unsupported_processors": "temperature and seed of each request are darts' own",
        "allow_block_sharing": "a block of old weights would be read after new ones were loaded",
        "auto_switch_to_flash": "name a kernel with attn_implementation",
        "max_queue_size": "what is not sampled yet waits in the stage",
    },
}
"""Arguments that darts sets -> why, or which key does."""

UNPLACED: dict[str, dict[str, str]] = {
    "vllm": {
        "pipeline_parallel_size": "an engine is given the GPUs of engine.tensor_parallel alone",
        "prefill_context_parallel_size": "an engine is given engine.tensor_parallel GPUs alone",
        "data_parallel_size": "engine.count is the number of engines",
        "data_parallel_size_local": "engine.count is the number of engines",
        "nnodes": "an engine is on one machine",
    },
    "transformers": {},
}
"""Sizes that are 1 here -> why."""

_SOURCES = {
    "vllm": ("engine/arg_utils.py", ("EngineArgs", "AsyncEngineArgs")),
    "transformers": ("generation/configuration_utils.py", ("ContinuousBatchingConfig",)),
}
"""File of the installed package, and the dataclasses in it whose fields are the arguments."""
_MORE = {"vllm": (), "transformers": ("attn_implementation",)}


def problems(section: EngineConfig) -> Iterator[tuple[str, str]]:
    """(key, complaint) for every argument that cannot be passed on."""
    for library, given in (("vllm", section.vllm), ("transformers", section.transformers)):
        types = argument_types(library) if given else {}
        known = types.keys()
        for name, value in given.items():
            key = f"engine.{library}.{name}"
            if name in OWNED[library]:
                yield key, f"darts sets it: {OWNED[library][name]}"
            elif known and name not in known:
                hint = did_you_mean(name, sorted(known - OWNED[library].keys()))
                yield key, f"no argument of the {library} installed here{hint}"
            elif name in UNPLACED[library] and value not in (1, None):
                why = UNPLACED[library][name]
                yield key, f"found {value!r:.60}, expected 1: {why}; leave it out"
            elif rule := _misfit(value, types.get(name, "")):
                yield key, f"found {value!r:.60}, expected {rule}"


def arguments(library: str) -> frozenset[str]:
    """Names that the installed library takes; none if it is not installed."""
    return frozenset(argument_types(library))


def argument_types(library: str) -> dict[str, str]:
    """Name -> type as its source writes it; {} if it is not installed."""
    found = importlib.util.find_spec(library)
    if found is None or found.origin is None:
        return {}
    file, classes = _SOURCES[library]
    tree = ast.parse((Path(found.origin).parent / file).read_text(encoding="utf-8"))
    found_types = {
        line.target.id: ast.unparse(line.annotation)
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    return found_types | dict.fromkeys(_MORE[library], "str")


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "None": (),
}
_WORDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}


def _misfit(value: object, annotation: str) -> str:
    """The plain types that an argument has, in words, if a value is of none of them; "" for a
    fitting one, and for types that are not plain."""
    names = [name.strip() for name in annotation.split("|")]
    if value is None or not all(name in _TYPES for name in names):
        return ""
    kinds = {kind for name in names for kind in _TYPES[name]}
    fits = bool in kinds if isinstance(value, bool) else isinstance(value, tuple(kinds))
    return "" if fits else " or ".join(_WORDS[name] for name in names if name in _WORDS)
