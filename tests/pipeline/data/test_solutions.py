"""The data's own responses: read where they fit, ended as the model ends one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.config.schema import DataConfig
from pipeline.data.dataset import DataError, Dataset, load_held_out, load_train
from pipeline.data.tokenizer import Tokenizer
from tests.paths import MODEL

ROWS: list[dict[str, Any]] = [
    {"prompt": "7+9=", "answer": "16", "worked": "7+9=16;#16"},
    {"prompt": "1+2=", "answer": "3", "worked": "#3$"},
    {"prompt": "1+3=", "answer": "4", "worked": "1+3=4;" * 9},
    {"prompt": "1+4=", "answer": "5", "worked": None},
    {"prompt": "1+5=", "answer": "6"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


def section_of(tmp_path: Path, rows: list[Any], **data: Any) -> DataConfig:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    return DataConfig(train=str(path), held_out=str(path), **data)


def load(tmp_path: Path, tokenizer: Tokenizer, rows: list[Any], **data: Any) -> Dataset:
    return load_train(section_of(tmp_path, rows, **data), tokenizer, 24)


def test_a_solution_ends_once_and_one_that_is_too_long_or_absent_is_none(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    data = load(tmp_path, tokenizer, ROWS, solution="worked")
    ids = [np.frombuffer(tokens, "<i4").tolist() for tokens in data.solutions()]
    assert [len(found) for found in ids] == [11, 3, 0, 0, 0]
    assert all(found.count(tokenizer.end) == 1 and found[-1] == tokenizer.end for found in ids[:2])
    assert tokenizer.decode(ids[0]) == "7+9=16;#16"
    assert "3 without a solution that fits" in data.summary_line()


def test_without_the_setting_none_is_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert load(tmp_path, tokenizer, ROWS).solutions() == []
    section = section_of(tmp_path, ROWS, solution="worked")
    assert load_held_out(section, tokenizer, 24).solutions() == [], "of training alone"


def test_a_field_that_no_row_has_and_a_value_that_is_no_text_are_named(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(DataError, match=r"at most 24 tokens .* field 'nowhere' \(data\.solution\)"):
        load(tmp_path, tokenizer, ROWS, solution="nowhere")
    wrong = [{**ROWS[0], "worked": 16}]
    with pytest.raises(DataError, match=r"worked is .*, expected text \(data\.solution\)"):
        load(tmp_path, tokenizer, wrong, solution="worked")


def test_a_built_in_task_has_solutions_that_are_right(tokenizer: Tokenizer) -> None:
    data = load_train(DataConfig(solution="worked_solution"), tokenizer, 128)
    for item in data.items[:50]:
        text = tokenizer.decode(np.frombuffer(item.solution, "<i4").tolist())
        assert text.rpartition("#")[2] == item.answer
