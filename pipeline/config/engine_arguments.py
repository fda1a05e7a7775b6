"""`engine.vllm` and `engine.transformers`: arguments of the engines' own libraries, by name.

Turns a section into complaints: arguments that darts sets itself, with the reason
and the key that sets them, and names that the installed library does not know. The
names are read from its source: importing it takes seconds, and on the machine
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

_SOURCES = {
    "vllm": ("engine/arg_utils.py", ("EngineArgs", "AsyncEngineArgs")),
    "transformers": ("generation/configuration_utils.py", ("ContinuousBatchingConfig",)),
}
"""File of the installed package, and the dataclasses in it whose fields are the arguments."""
_MORE = {"vllm": (), "transformers": ("attn_implementation",)}


def problems(section: EngineConfig) -> Iterator[tuple[str, str]]:
    """(key, complaint) for every argument that cannot be passed on."""
    for library, given in (("vllm", section.vllm), ("transformers", section.transformers)):
        known = arguments(library) if given else frozenset[str]()
        for name in given:
            key = f"engine.{library}.{name}"
            if name in OWNED[library]:
                yield key, f"darts sets it: {OWNED[library][name]}"
            elif known and name not in known:
                hint = did_you_mean(name, sorted(known - OWNED[library].keys()))
                yield key, f"no argument of the {library} installed here{hint}"


def arguments(library: str) -> frozenset[str]:
    """Names that the installed library takes; none if it is not installed."""
    found = importlib.util.find_spec(library)
    if found is None or found.origin is None:
        return frozenset()
    file, classes = _SOURCES[library]
    tree = ast.parse((Path(found.origin).parent / file).read_text(encoding="utf-8"))
    names = {
        line.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    return frozenset(names | set(_MORE[library]))
