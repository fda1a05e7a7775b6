"""One fact in several files of a model: all are read, and what differs is united or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.model_files import ModelError, read_facts

ADDED = [{"id": 7, "content": "<|endoftext|>"}, {"id": 8, "content": "<|im_end|>"}]


def model(folder: Path, **files: Any) -> Path:
    """A directory of these files; `config` has a vocabulary unless it says otherwise."""
    files["config"] = {"vocab_size": 16, **files.get("config", {})}
    files.setdefault("tokenizer", {"added_tokens": ADDED, "model": {"vocab": {"</s>": 2}}})
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "files, ends",
    [
        ({"config": {"eos_token_id": 7}}, {7}),
        ({"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": [8, 7]}}, {7, 8}),
        ({"config": {"eos_token_id": 7}, "tokenizer_config": {"eos_token": "<|im_end|>"}}, {7, 8}),
        ({"tokenizer_config": {"eos_token": {"content": "<|im_end|>", "lstrip": False}}}, {8}),
        ({"special_tokens_map": {"eos_token": "</s>"}}, {2}),
        ({"config": {"eos_token_id": 7, "text_config": {"eos_token_id": 8}}}, {7, 8}),
        ({"config": {"eos_token_id": None}, "generation_config": {"eos_token_id": True}}, set()),
    ],
)
def test_a_response_ends_with_every_token_that_a_file_names(
    tmp_path: Path, files: dict[str, Any], ends: set[int]
):
    assert {*read_facts(model(tmp_path, **files)).stop_tokens} == ends


def test_each_end_knows_its_files_and_one_that_is_no_token_is_kept_apart(tmp_path: Path):
    facts = read_facts(
        model(
            tmp_path,
            config={"eos_token_id": 7},
            generation_config={"eos_token_id": 7},
            tokenizer_config={"eos_token": "<|eot|>"},
        )
    )
    assert facts.ends == {7: ("generation_config.json", "config.json")}
    assert facts.unknown_ends == {"<|eot|>": "tokenizer_config.json"}


@pytest.mark.parametrize(
    "config, limit",
    [
        ({"n_positions": 64}, 64),  # GPT-2
        ({"n_positions": 64, "n_ctx": 32}, 32),
        ({"max_seq_len": 2048}, 2048),  # MPT
        ({"seq_length": 8192}, 8192),  # ChatGLM
        ({"max_position_embeddings": 512}, 512),
        ({"text_config": {"max_position_embeddings": 128}}, 128),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {
                    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
        ({"rope_parameters": {"rope_type": "default"}, "n_ctx": 9}, 9),
        ({}, 0),
    ],
)  # fmt: skip
def test_the_longest_sequence_has_many_names(tmp_path: Path, config: dict[str, Any], limit: int):
    assert read_facts(model(tmp_path, config=config)).max_model_tokens == limit


def test_the_tokenizers_limit_counts_where_the_model_names_none(tmp_path: Path):
    folder = model(tmp_path, tokenizer_config={"model_max_length": 77})
    assert read_facts(folder).max_model_tokens == 77
    model(tmp_path, tokenizer_config={"model_max_length": 10**30})
    assert read_facts(folder).max_model_tokens == 0
    model(tmp_path, config={"n_ctx": 99}, tokenizer_config={"model_max_length": 77})
    assert read_facts(folder).max_model_tokens == 99


def test_number_type_tied_output_layer_and_first_token_are_read_by_all_their_names(tmp_path: Path):
    facts = read_facts(
        model(
            tmp_path,
            config={"torch_dtype": "bfloat16", "tie_word_embeddings": False, "bos_token_id": 7,
                    "text_config": {"tie_word_embeddings": True}},
            tokenizer_config={"bos_token": "</s>", "add_bos_token": True,
                              "pad_token": "<|im_end|>"},
        )
    )  # fmt: skip
    assert (facts.dtype, facts.tied, facts.bos) == ("bfloat16", True, {7, 2})
    assert (facts.adds_bos, facts.pad) == (True, 8)
    assert read_facts(model(tmp_path, config={"padded_vocab_size": 32})).vocabulary == 32


@pytest.mark.parametrize(
    "content, says",
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "nested more than"),
        (b'{"a": "\xff"}', "not JSON"),
        (b"[]", "found a list, expected an object"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of git-lfs"),
    ],
)
@pytest.mark.parametrize("name", ["config", "tokenizer_config"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, says: str):
    (model(tmp_path) / f"{name}.json").write_bytes(content)
    with pytest.raises(ModelError, match=says) as caught:
        read_facts(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / f"{name}.json"))
