"""What an engine knows of a model before it is loaded is what the stage knows of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engines.base import EngineError
from engines.model_facts import read_model_facts
from pipeline.data.tokenizer import Tokenizer
from tests.paths import MODEL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        shutil.copy(MODEL / name, tmp_path)
    return tmp_path


def write(model: Path, config: dict[str, object]) -> None:
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("parts", [1, 2])
def test_engine_and_stage_read_the_same_of_models_of_one_part_and_of_several(
    model: Path, parts: int
):
    config = json.loads((model / "config.json").read_text())
    if parts == 2:
        write(model, {"vocab_size": None, "eos_token_id": None, "text_config": config})
    facts, tokenizer = read_model_facts(str(model)), Tokenizer(model)
    assert facts.vocabulary == tokenizer.vocabulary == 24
    assert set(facts.stop_tokens) == tokenizer.eos
    assert facts.max_model_tokens == tokenizer.max_model_tokens > 0


def test_a_directory_that_is_no_language_model_is_refused(model: Path):
    write(model, {"model_type": "vit"})
    with pytest.raises(EngineError, match=r"config.json: no vocab_size; expected a causal LM"):
        read_model_facts(str(model))
