"""Tokenizers that fit their model, and data sets checked line by line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.schema import DataConfig
from pipeline.data.dataset import TASK_PROMPTS, DataError, Dataset, load_held_out, load_train
from pipeline.data.tokenizer import ModelError, Tokenizer, check_tokenizer
from tests.paths import MODEL


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


def changed(tmp_path: Path, **values: object) -> Path:
    """A copy of the shipped model's small files with another config.json."""
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(MODEL / name, tmp_path)
    config = json.loads((MODEL / "config.json").read_text()) | values
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_text_comes_back_and_special_tokens_do_not(tokenizer: Tokenizer):
    ids = tokenizer.encode("7+9=16;#16")
    assert len(ids) == 10
    assert tokenizer.decode(ids) == "7+9=16;#16"
    assert tokenizer.decode([*ids, 1]) == "7+9=16;#16"
    assert (tokenizer.vocabulary, tokenizer.max_model_tokens) == (24, 512)
    assert (tokenizer.eos, tokenizer.pad) == (frozenset({1}), 0)
    assert tokenizer.encode_all(["1", "12"]) == [tokenizer.encode("1"), tokenizer.encode("12")]


def test_a_text_outside_of_the_alphabet_is_refused(tokenizer: Tokenizer):
    with pytest.raises(ValueError, match=r"cannot be written .*lacks ' ahistw'"):
        tokenizer.encode("what is 7+9?")


def test_model_and_tokenizer_that_disagree_are_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="ids up to 23, the model has 20"):
        check_tokenizer(changed(tmp_path, vocab_size=20))
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        check_tokenizer(changed(tmp_path, eos_token_id=None))
    with pytest.raises(ModelError, match="eos_token_id 999 is not a token"):
        check_tokenizer(changed(tmp_path, eos_token_id=999))
    check_tokenizer(changed(tmp_path, eos_token_id=[1, 2]))
    nested = {"vocab_size": 24, "eos_token_id": 1}
    check_tokenizer(changed(tmp_path, vocab_size=None, eos_token_id=None, text_config=nested))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="not a tokenizer"):
        check_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json: no such file"):
        check_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ModelError, match=r"config\.json: not JSON"):
        check_tokenizer(tmp_path)


def test_a_task_gives_prompts_for_training_and_others_held_out(tokenizer: Tokenizer):
    train = load_train(DataConfig(), tokenizer, 128)
    held_out = load_held_out(DataConfig(held_out=50), tokenizer, 128)
    assert (len(train), len(held_out)) == (TASK_PROMPTS, 50)
    assert not {item.prompt for item in train.items} & {item.prompt for item in held_out.items}
    item = train[0]
    assert tokenizer.decode(np.frombuffer(item.tokens, dtype="<i4").tolist()) == item.prompt
    assert item.answer == str(sum(map(int, item.prompt[:-1].split("+"))))
    assert item.tag == f"terms={item.columns['terms']}"
    assert len(load_held_out(DataConfig(held_out=0), tokenizer, 128)) == 0


BAD = [
    (b'{"q": "1+1=", "a": "2"}', ""),
    (b"", ""),  # an empty line is nothing
    (b"{not json", ":3: not JSON"),
    (b"[1]", ":4: found a list, expected an object"),
    (b'{"a": "2"}', ":5: no field 'q' (data.prompt); fields: a"),
    (b'{"q": 3, "a": "2"}', ":6: q is a number, expected text"),
    (b'{"q": "1", "a": ["2"]}', ":7: a is a list, expected text or a number"),
    (b'{"q": "1", "a": null}', ":8: a is null, expected text or a number"),
    (b'{"q": "", "a": "2"}', ":9: q is empty"),
    (b'{"q": "hello", "a": "2"}', ":10: prompt cannot be written in the tokenizer's alphabet"),
    (b'{"q": "' + b"1" * 400 + b'", "a": "2"}', ":11: prompt of 400 tokens and sampling"),
    (b'{"q": "1\xff", "a": "2"}', ":12: not JSON"),
    (b'{"q": "1+1=", "a": 2, "extra": {"x": [1]}}', ""),
    (b"[" * 100_000, ":14: not JSON"),
]


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(line for line, _ in BAD) + b"\n")
    return path


@pytest.mark.fault("bad lines in the data", part="configuration", by="file")
def test_every_bad_line_is_named_and_stops_the_run(bad_file: Path, tokenizer: Tokenizer):
    """Promise: each is named by line and reason, with the setting that leaves them out.
    Bound: while it is loaded.
    """
    with pytest.raises(DataError) as raised:
        load_train(DataConfig(train=str(bad_file), prompt="q", answer="a"), tokenizer, 128)
    text = str(raised.value)
    for _, claim in BAD:
        assert f"{bad_file}{claim}" in text
    assert "leave them out with data.bad_lines: skip" in text


def test_bad_lines_are_skipped_and_counted_when_asked(bad_file: Path, tokenizer: Tokenizer):
    data = DataConfig(train=str(bad_file), prompt="q", answer="a", bad_lines="skip")
    dataset = load_train(data, tokenizer, 128)
    # duplicate prompts are two prompts
    assert [(item.prompt, item.answer) for item in dataset.items] == [("1+1=", "2")] * 2
    assert dataset[1].columns["extra"] == {"x": [1]}
    assert dataset.summary_line() == f"{bad_file}: 2 prompts, 11 bad lines skipped"


def test_a_file_without_a_usable_prompt_is_refused(tmp_path: Path, tokenizer: Tokenizer):
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="no usable prompt"):
        load_train(DataConfig(train=str(path)), tokenizer, 128)
    path.write_text('{"prompt": 1}\n')
    with pytest.raises(DataError, match=r"no usable prompt; first: .*:1: prompt is a number"):
        load_held_out(DataConfig(held_out=str(path), bad_lines="skip"), tokenizer, 128)
    with pytest.raises(DataError, match="no such file"):
        load_train(DataConfig(train=str(tmp_path / "none.jsonl")), tokenizer, 128)


@pytest.mark.fault("a line of the data without an end", part="configuration", by="file")
def test_a_line_without_an_end_is_not_read_to_it(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    """Promise: it is refused by its number, unread past the limit.
    Bound: while it is loaded.
    """
    monkeypatch.setattr("pipeline.data.files._LINE_BYTES", 100)
    path = tmp_path / "long.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "' + "1" * 1000)
    with pytest.raises(DataError, match=r"long\.jsonl:2: a line of more than 100 bytes"):
        load_train(DataConfig(train=str(path)), tokenizer, 128)


def test_a_data_set_of_many_lines_keeps_their_order(tmp_path: Path, tokenizer: Tokenizer):
    path = tmp_path / "many.jsonl"
    lines = [json.dumps({"prompt": f"{i}+1=", "answer": i + 1}) for i in range(3000)]
    path.write_text("\n".join(lines))
    dataset: Dataset = load_train(DataConfig(train=str(path)), tokenizer, 64)
    assert [item.answer for item in dataset.items] == [str(i + 1) for i in range(3000)]
