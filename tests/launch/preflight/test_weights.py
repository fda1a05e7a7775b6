"""Weight files are looked at before a run: what could not be loaded is named by its file."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from launch.preflight.settings import settings_problems
from launch.preflight.weights import weights_line, weights_problems
from pipeline.config.schema import Config, EngineConfig, LearnerConfig, LoraConfig, StepConfig
from tests.paths import MODEL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(MODEL, tmp_path / "m")
    return tmp_path / "m"


def problems(model: Path, **learner: Any) -> list[str]:
    return weights_problems(Config(model=str(model), learner=LearnerConfig(**learner)))


def shards(model: Path, *present: str) -> None:
    """The model in two shards, of which these are there."""
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").unlink()
    for name in present:
        (model / name).write_bytes(content)
    placed = {"model.norm.weight": "model-00001-of-00002.safetensors",
              "lm_head.weight": "model-00002-of-00002.safetensors"}  # fmt: skip
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


BOTH = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_a_whole_model_has_no_complaint(model: Path):
    assert problems(model) == []
    shards(model, *BOTH)
    assert problems(model) == []


@pytest.mark.parametrize(
    "stored, named, trained, engine, line",
    [
        ("BF16", "bfloat16", "float32", "float32",
         "bfloat16 on disk, trained in float32, served in float32"),
        ("F32", "float32", "bfloat16", "bfloat16",
         ("float32 on disk, trained in bfloat16, served in bfloat16; they are rounded to bfloat16 "
          "when they are loaded")),
        ("F16", "bfloat16", "float32", "auto",
         ("float16 on disk, trained in float32, served in the dtype of config.json (bfloat16); "
          "config.json says bfloat16")),
    ],
)  # fmt: skip
def test_stored_trained_and_served_types_are_named(
    model: Path, stored: str, named: str, trained: Any, engine: Any, line: str
):
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content.replace(b'"BF16"', f'"{stored}"'.encode()))
    size = int.from_bytes(content[:8], "little") + (len(stored) - 4) * content.count(b'"BF16"')
    weights.write_bytes(struct.pack("<Q", size) + weights.read_bytes()[8:])
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": named}))
    learner = LearnerConfig(dtype=trained, zero=1)
    asked = Config(model=str(model), learner=learner, engine=EngineConfig(dtype=engine))
    assert weights_line(asked) == line


def test_an_evaluation_trains_nothing_and_asks_nothing_of_the_learner(model: Path):
    config = model / "config.json"
    settings = {**json.loads(config.read_text()), "quantization_config": {"bits": 4}}
    config.write_text(json.dumps(settings))
    training = Config(model=str(model))
    assert len(settings_problems(training)) == 1, "quantised weights are not trained"
    evaluation = Config(model=str(model), step=StepConfig(count=0))
    assert settings_problems(evaluation) == []
    assert weights_line(evaluation) == "bfloat16 on disk, served in float32"


def test_a_missing_shard_is_named(model: Path):
    shards(model, BOTH[0])
    [line] = problems(model)
    assert line.startswith(f"{model / BOTH[1]}: no such file, but model.safetensors.index.json")


def test_a_lost_index_is_named(model: Path):
    shards(model, *BOTH)
    (model / "model.safetensors.index.json").unlink()
    [line] = problems(model)
    assert line.startswith(
        f"{model / 'model.safetensors.index.json'}: no such file, but model-00001"
    )


@pytest.mark.parametrize(
    "content, says",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"", "not a file of safetensors, or cut short"),
        (b"PK\x03\x04" + b"\0" * 40, "not a file of safetensors"),
        (struct.pack("<Q", 9) + b"{" + b" " * 20, "not a file of safetensors"),
        (struct.pack("<Q", 1 << 60) + b"{}", "not a file of safetensors, or cut short"),
    ],
)
def test_a_file_that_holds_no_weights_is_named(model: Path, content: bytes, says: str):
    (model / "model.safetensors").write_bytes(content)
    [line] = problems(model)
    assert line.startswith(f"{model / 'model.safetensors'}: ")
    assert says in line


def test_a_download_that_was_cut_short_is_told_by_its_size(model: Path):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    [line] = problems(model)
    assert "cut short: " in line


@pytest.mark.parametrize(
    "name, says",
    [
        ("pytorch_model.bin", "weights in pickles"),
        ("pytorch_model-00001-of-00002.bin", "weights in pickles"),
        ("adapter_model.safetensors", "an adapter alone; merge it"),
        ("model-Q4_K_M.gguf", "weights in GGUF"),
        ("consolidated.00.pth", "another format"),
        ("tf_model.h5", "TensorFlow"),
    ],
)
def test_weights_of_other_kinds_are_named_with_the_cure(model: Path, name: str, says: str):
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(b"x")
    [line] = problems(model)
    assert line.startswith(f"{model / name}: ")
    assert says in line


def test_a_directory_without_weights_says_what_was_looked_for(model: Path):
    (model / "model.safetensors").unlink()
    [line] = problems(model)
    assert "neither model.safetensors nor model.safetensors.index.json" in line


def test_the_reference_is_looked_at_too(model: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "model.safetensors").unlink()
    [line] = problems(model, reference=str(other))
    assert line.startswith(f"{other}: no weights")
    assert problems(model, reference="start") == []


def changed(model: Path, **values: Any) -> Path:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return model


def test_rows_of_the_embedding_and_an_output_layer_that_is_lost_are_told(model: Path):
    [line] = problems(changed(model, vocab_size=32))
    assert "vocab_size is 32, and the embedding of the weights has 24 rows" in line
    [line] = problems(changed(model, vocab_size=24, tie_word_embeddings=False))
    assert "tie_word_embeddings is false, and the weights have no output layer" in line


@pytest.mark.parametrize(
    "targets, says",
    [
        (("all-linear",), ""),
        (("q_proj", "down_proj"), ""),
        (("self_attn.q_proj",), ""),
        (("q_prj",), "no layer is named 'q_prj'; did you mean q_proj?"),
        (("c_attn",), "no layer is named 'c_attn'; the model has "),
        (("input_layernorm",), "no layer is named 'input_layernorm'"),
    ],
)
def test_lora_targets_are_names_of_linear_layers(model: Path, targets: tuple[str, ...], says: str):
    found = problems(model, lora=LoraConfig(targets=targets))
    assert len(found) == bool(says)
    assert says in "".join(found)
