"""Reads what every engine needs to know about a model, without loading it.

The facts are those that the stage reads too (`pipeline.config.model_files`). Does not import
transformers: a wrong directory is refused at once.
"""

from __future__ import annotations

from pathlib import Path

from engines.base import EngineError
from pipeline.config.model_files import ModelError, ModelFacts, read_facts

__all__ = ["ModelFacts", "read_model_facts"]


def read_model_facts(directory: str) -> ModelFacts:
    """Read the facts of a model. Raises EngineError if there is none, or it has no EOS."""
    try:
        facts = read_facts(Path(directory))
    except ModelError as error:
        raise EngineError(f"{error}; expected a Hugging Face model") from error
    if not facts.vocabulary:
        raise EngineError(f"{directory}/config.json: no vocab_size; expected a causal LM")
    if not facts.ends:
        raise EngineError(f"{directory}: no eos_token_id in its config: no response could end")
    return facts
