"""Reads facts about a model from its directory, without loading the model.

Turns `config.json` and `generation_config.json` into the few facts that every
engine needs. Does not import transformers: a wrong directory is refused at once.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from engines.base import EngineError
from pipeline.system import untrusted_files


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of a Hugging Face causal LM directory."""

    vocabulary: int  # rows of the embedding
    stop_tokens: tuple[int, ...]  # generation ends after one of these
    max_model_tokens: int  # prompt and response together; 0: unknown


class _File(msgspec.Struct):
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    eos_token_id: int | list[int] | None = None
    text_config: _File | None = None  # multimodal models: the language model


def _read(path: Path) -> _File:
    try:
        return untrusted_files.read_json(path, _File)
    except untrusted_files.UnreadableFile as error:
        raise EngineError(f"{error}; expected a file of a Hugging Face model") from error


def read_model_facts(directory: str) -> ModelFacts:
    """Read the facts of a model. Raises EngineError if there is none, or it has no EOS."""
    config = _read(Path(directory) / "config.json")
    text = config.text_config or config
    generation = Path(directory) / "generation_config.json"
    vocabulary, ends = text.vocab_size or config.vocab_size or 0, list[int]()
    more = _read(generation).eos_token_id if generation.is_file() else None
    for eos in (more, config.eos_token_id if text.eos_token_id is None else text.eos_token_id):
        ends += [] if eos is None else [eos] if isinstance(eos, int) else eos
    if vocabulary <= 0:
        raise EngineError(f"{directory}/config.json: no vocab_size; expected a causal LM")
    if not ends:
        raise EngineError(f"{directory}: no eos_token_id in its config: no response could end")
    return ModelFacts(
        vocabulary=vocabulary,
        stop_tokens=tuple(dict.fromkeys(ends)),
        max_model_tokens=text.max_position_embeddings or config.max_position_embeddings or 0,
    )
