"""Checks what the learner will need, before anything starts.

Reads the model's config.json and DeepSpeed's file, and looks for packages; loads no model. The
learner checks at its start what only the loaded model shows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pipeline.config import deepspeed_json
from pipeline.config.schema import Config
from pipeline.data.tokenizer import ModelError, read_json
from pipeline.system.untrusted_files import words

OWN_ATTENTION = {
    **dict.fromkeys(("bloom", "mpt", "falcon"), "their attention is code of their own, with ALiBi"),
    **dict.fromkeys(
        ("gptj", "gpt_neo", "codegen", "stablelm", "nemotron", "persimmon"),
        "their attention is code of their own",
    ),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"), "they have no attention"),
    "gpt_oss": "its attention has sinks",
}
"""model_type -> why packed calls cannot run it (seen with transformers 5.19)."""
_KINDS = ("full_attention", "sliding_attention")
_CURE = (
    "choose a model of another architecture (Qwen, Llama, Mistral, Gemma, Phi, OLMo, GPT-2, ...)"
)


def learner_problems(config: Config) -> Iterator[str]:
    """Yields why this model or these learner settings cannot be trained, one line each."""
    section = config.learner
    path = Path(config.model) / "config.json"
    try:
        settings = read_json(path)
    except ModelError as error:
        yield str(error)
    else:
        yield from (f"{path}: {problem}" for problem in model_problems(settings))
    if section.lora is not None and importlib.util.find_spec("peft") is None:
        yield (
            "learner.lora: the package peft is not installed: pip install 'darts-rl[lora]', or "
            "leave learner.lora out"
        )
    try:
        deepspeed_json.read(section)
    except deepspeed_json.DeepSpeedFileError as error:
        yield from error.problems


def model_problems(settings: dict[str, Any]) -> Iterator[str]:
    """Yields why a model with this config.json cannot be trained."""
    inner = settings.get("text_config")
    text: dict[str, Any] = {**settings, **inner} if isinstance(inner, dict) else settings
    kind = words(text.get("model_type"))
    if text.get("is_encoder_decoder"):
        yield f"{kind} is an encoder and a decoder, not a causal language model"
    if "quantization_config" in text:
        yield "its weights are quantised, which cannot be trained; name the unquantised model"
    if kind in OWN_ATTENTION:
        yield f"models of type {kind} cannot be trained: {OWN_ATTENTION[kind]}; {_CURE}"
    layers = text.get("layer_types") or []
    if not isinstance(layers, list):
        yield f"layer_types: found {layers!r:.80}, expected a list"
    elif other := sorted({words(layer) for layer in cast(list[object], layers)} - {*_KINDS}):
        yield f"layers of kind {other[0]} cannot be trained, only {', '.join(_KINDS)}; {_CURE}"
    if text.get("attention_chunk_size"):
        yield f"attention in chunks (attention_chunk_size) cannot be trained; {_CURE}"
