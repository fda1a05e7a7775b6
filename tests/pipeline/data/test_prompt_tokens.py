"""Tokens around a prompt: what begins it, what ends its response, and columns that belong in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.schema import Config, DataConfig
from pipeline.data import findings
from pipeline.data.dataset import DataError, Dataset, load_train
from pipeline.data.tokenizer import Tokenizer
from tests.paths import MODEL

USER = {"role": "user", "content": "1+1="}
TURNS = "{% for m in messages %}{{ m.content }}~{% endfor %}"
FIRST = {"SpecialToken": {"id": "$", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def model(folder: Path, processor: list[Any] | None = None, **tokenizer_config: Any) -> Path:
    """The shipped model with another tokenizer; `processor`: what it puts around a text."""
    shutil.copytree(MODEL, folder / "m")
    path = folder / "m" / "tokenizer.json"
    found = json.loads(path.read_text())
    if processor is not None:
        found["post_processor"] |= {
            "single": processor,
            "special_tokens": {"$": {"id": "$", "ids": [1], "tokens": ["$"]}},
        }
    path.write_text(json.dumps(found))
    (folder / "m" / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder / "m"


def loaded(folder: Path, row: dict[str, Any], **data: Any) -> Dataset:
    path = folder.parent / "a.jsonl"
    path.write_text(json.dumps({"answer": "2", **row}) + "\n")
    return load_train(DataConfig(train=str(path), **data), Tokenizer(folder), 64)


def ids(data: Dataset) -> list[int]:
    return np.frombuffer(data[0].tokens, dtype="<i4").tolist()


@pytest.mark.parametrize(
    "processor, settings, puts",
    [
        ([FIRST, TEXT], {}, True),
        ([FIRST, TEXT, FIRST], {}, True),
        ([TEXT, FIRST], {}, False),  # an end, which no prompt has
        ([TEXT], {"add_bos_token": True, "bos_token": "$"}, True),
        ([FIRST, TEXT], {"add_bos_token": False}, False),
        (None, {}, False),
    ],
)
def test_text_begins_as_the_models_own_tokenizer_begins_it(
    tmp_path: Path, processor: list[Any] | None, settings: dict[str, Any], puts: bool
):
    folder = model(tmp_path, processor, **settings)
    plain = Tokenizer(folder).encode("1+1=")
    found = loaded(folder, {"prompt": "1+1="})
    assert ids(found) == ([1] if puts else []) + plain
    assert found[0].prompt == "1+1="
    told = [*findings.facts_of(Tokenizer(folder))]
    assert any("a prompt that is text begins with $ (1)" in line for line in told) is puts


def test_the_first_token_is_put_once_and_kept_when_a_prompt_is_cut(tmp_path: Path):
    folder = model(tmp_path, [FIRST, TEXT])
    plain = Tokenizer(folder).encode("1+1=")
    assert ids(loaded(folder, {"prompt": "$1+1="})) == [1, *plain]
    cut = loaded(folder, {"prompt": "1+1="}, max_prompt_tokens=3, long_prompts="cut")
    assert ids(cut) == [1, *plain[-2:]]
    with pytest.raises(DataError, match="prompt of 5 tokens, but data.max_prompt_tokens is 4"):
        loaded(folder, {"prompt": "1+1="}, max_prompt_tokens=4)


def test_what_a_template_writes_gets_no_first_token_beside_its_own(tmp_path: Path):
    folder = model(tmp_path, [FIRST, TEXT], chat_template="{{ messages[0].content }}")
    assert ids(loaded(folder, {"prompt": [USER]})) == Tokenizer(folder).encode("1+1=")


def test_a_template_whose_turns_end_with_a_token_that_ends_no_response_is_told(tmp_path: Path):
    folder = model(tmp_path, chat_template=TURNS)  # ends a turn with "~", 0
    config = Config(model=str(folder))
    messages, text = loaded(folder, {"prompt": [USER]}), loaded(folder, {"prompt": "1+1="})
    [line] = findings.warnings_of(config, Tokenizer(folder), messages)
    assert line.startswith("the chat template ends a turn with '~' (0), and no response ends with")
    assert list(findings.warnings_of(config, Tokenizer(folder), text)) == []
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    assert list(findings.warnings_of(config, Tokenizer(folder), messages)) == []


def test_facts_name_every_end_with_its_files(tmp_path: Path):
    folder = model(tmp_path, eos_token="~", pad_token="~")
    [ends] = findings.facts_of(Tokenizer(folder))
    assert ends == (
        "a response ends with ~ (0, by tokenizer_config.json) or "
        "$ (1, by generation_config.json, config.json)"
    )


TOOLS = "{% if tools %}{{ tools | length }}{% endif %}{% if plain %}9{% endif %}+1="
TOOL = {"type": "function", "function": {"name": "get", "parameters": None}}


@pytest.mark.parametrize(
    "columns, prompt",
    [
        ({}, "+1="),
        ({"tools": [TOOL, TOOL]}, "2+1="),
        ({"tools": json.dumps([TOOL])}, "1+1="),
        ({"tools": [], "images": [], "chat_template_kwargs": None}, "+1="),
        ({"chat_template_kwargs": {"plain": True}}, "9+1="),
        ({"chat_template_kwargs": '{"plain": true}', "tools": [TOOL]}, "19+1="),
    ],
)
def test_columns_that_are_arguments_of_the_template_reach_it(
    tmp_path: Path, columns: dict[str, Any], prompt: str
):
    folder = model(tmp_path, chat_template=TOOLS)
    data = loaded(folder, {"prompt": [USER], **columns})
    assert data[0].prompt == prompt
    given = [name for name, value in columns.items() if value and name != "images"]
    assert all(name in data.summary_line() for name in given)


def test_nulls_of_columnar_files_reach_no_template(tmp_path: Path):
    folder = model(tmp_path, chat_template="{{ tools[0].function | length }}+1=")
    assert loaded(folder, {"prompt": [USER], "tools": [TOOL]})[0].prompt == "1+1="


@pytest.mark.parametrize(
    "row, says",
    [
        ({"prompt": [USER], "images": [{"bytes": "aGk="}]}, "has images, which darts gives to no"),
        ({"prompt": "1+1=", "video": "x.mp4"}, "has video, which darts gives to no model"),
        ({"prompt": [USER], "tools": {"a": 1}}, "has tools that are an object, expected a list"),
        ({"prompt": [USER], "tools": "{"}, "has tools that are not JSON"),
        ({"prompt": [USER], "chat_template_kwargs": [1]}, "are a list, expected an object"),
        ({"prompt": [USER], "chat_template_kwargs": {"messages": []}}, "which darts sets itself"),
        ({"prompt": "1+1=", "tools": [TOOL]}, "is text, so the row's tools cannot be given"),
    ],
)
def test_columns_that_cannot_be_used_are_refused_by_name(
    tmp_path: Path, row: dict[str, Any], says: str
):
    folder = model(tmp_path, chat_template=TOOLS)
    with pytest.raises(DataError, match=says):
        loaded(folder, row)
