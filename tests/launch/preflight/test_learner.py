"""Models and settings of the learner that cannot be trained are named before anything starts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from launch.preflight.learner import learner_problems, model_problems
from pipeline.config.schema import Config, LearnerConfig, LoraConfig


def config_of(directory: Path, model: dict[str, Any], **learner: Any) -> Config:
    (directory / "config.json").write_text(json.dumps(model))
    return Config(model=str(directory), learner=LearnerConfig(**learner))


@pytest.mark.parametrize(
    "model,expected",
    [
        ({"model_type": "bloom"}, "models of type bloom cannot be trained"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "not a causal language model"),
        ({"model_type": "qwen3", "quantization_config": {"bits": 4}}, "name the unquantised model"),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]},
         "layers of kind linear_attention"),
        ({"model_type": "llama4_text", "attention_chunk_size": 8192}, "attention in chunks"),
        ({"model_type": "gemma3", "text_config": {"layer_types": ["x"]}}, "layers of kind x"),
    ],
)  # fmt: skip
def test_model_that_cannot_be_trained_is_named_with_the_file(
    tmp_path: Path, model: dict[str, Any], expected: str
):
    [problem] = learner_problems(config_of(tmp_path, model))
    assert problem.startswith(f"{tmp_path / 'config.json'}: ")
    assert expected in problem


def test_models_that_can_be_trained_have_no_complaint():
    for kind in ("qwen2", "qwen3", "llama", "mistral", "gpt2"):
        assert list(model_problems({"model_type": kind})) == []
    assert not list(model_problems({"layer_types": ["full_attention", "sliding_attention"]}))


def test_missing_peft_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = config_of(tmp_path, {"model_type": "qwen3"}, lora=LoraConfig())
    assert list(learner_problems(config)) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    [problem] = learner_problems(config)
    assert "pip install 'darts-rl[lora]'" in problem


def test_problems_of_deepspeeds_file_are_among_them(tmp_path: Path):
    path = tmp_path / "ds.json"
    path.write_text('{"train_batch_size": 8}')
    config = config_of(tmp_path, {"model_type": "qwen3"}, deepspeed=str(path))
    [problem] = learner_problems(config)
    assert problem.startswith(f"{path}: train_batch_size")


def test_a_damaged_config_is_named_as_any_other_problem(tmp_path: Path):
    config = config_of(tmp_path, {})
    (tmp_path / "config.json").write_text("{")
    [problem] = learner_problems(config)
    assert problem.startswith(f"{tmp_path / 'config.json'}: not JSON: ")
