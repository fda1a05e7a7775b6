"""Columns that JSON cannot hold: converted by a rule, named, or not looked at."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.config.schema import DataConfig
from pipeline.data.dataset import DataError, Dataset, load_train
from pipeline.data.plain_values import plain
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.wanted import Wanted
from tests.paths import MODEL


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


@pytest.mark.parametrize(
    "value, found",
    [
        (dt.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),  # noqa: DTZ001
        (dt.date(2026, 1, 2), "2026-01-02"),
        (dt.time(3, 4), "03:04:00"),
        (dt.timedelta(minutes=1), 60.0),
        (Decimal("2.50"), "2.50"),
        (b"hi", "aGk="),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (float("nan"), None),
        (float("-inf"), None),
        (np.float32(0.5), 0.5),
        (np.array([[1, 2]]), [[1, 2]]),
        ([("a", 1)], [["a", 1]]),
        ({1: {"when": dt.date(2026, 1, 2)}}, {"1": {"when": "2026-01-02"}}),
        (True, True),
        (None, None),
    ],
)
def test_each_kind_of_value_has_one_form_in_json(value: Any, found: Any):
    assert plain(value) == found
    assert msgspec.json.decode(msgspec.json.encode(plain(value))) == found


def test_a_value_without_a_rule_is_refused_by_its_kind():
    with pytest.raises(ValueError, match="holds a complex, which cannot be sent to a reward"):
        plain({"a": [1j]})


def data_of(tokenizer: Tokenizer, table: pa.Table, path: Path, wanted: Wanted) -> Dataset:
    parquet.write_table(table, path)
    return load_train(DataConfig(train=str(path)), tokenizer, 64, wanted)


def with_column(values: Any) -> pa.Table:
    count = len(values)
    return pa.table({"prompt": ["1+1="] * count, "answer": ["2"] * count, "more": values})


TEXT = pa.array([b"cafe", b"caf\xe9"], pa.binary()).view(pa.string())
YEAR = pa.array([0, 600_000_000_000_000], pa.timestamp("ms"))
TIMES = pa.array([1, 2], pa.timestamp("ns"))


def test_times_of_any_unit_are_text_for_a_reward(tmp_path: Path, tokenizer: Tokenizer):
    data = data_of(tokenizer, with_column(TIMES), tmp_path / "a.parquet", Wanted())
    assert data[1].columns["more"].startswith("1970-01-01T00:00:00")
    msgspec.json.encode(data[1].columns)


@pytest.mark.parametrize(
    "values, says", [(TEXT, "'utf-8' codec can't decode"), (YEAR, "out of range")]
)
def test_a_value_that_python_cannot_hold_is_named_by_file_row_and_column(
    tmp_path: Path, tokenizer: Tokenizer, values: Any, says: str
):
    path = tmp_path / "a.parquet"
    with pytest.raises(DataError, match=says) as caught:
        data_of(tokenizer, with_column(values), path, Wanted())
    first, *_ = str(caught.value).splitlines()
    assert first.startswith(f"{path}[1]: column 'more' cannot be read: ")
    unread = data_of(tokenizer, with_column(values), path, Wanted(columns=frozenset({"answer"})))
    assert [item.columns for item in unread.items] == [{"answer": "2"}] * 2


def test_prompt_and_answer_that_cannot_be_read_are_named_too(tmp_path: Path, tokenizer: Tokenizer):
    for name, other in (("prompt", "answer"), ("answer", "prompt")):
        table = pa.table({name: TEXT, other: ["1", "2"]})
        with pytest.raises(DataError, match=rf"\[1\]: {name} (cannot be read|is not readable)"):
            load_train(
                DataConfig(train=str(written(tmp_path / f"{name}.parquet", table)), chat="never"),
                tokenizer, 64,
            )  # fmt: skip


def written(path: Path, table: pa.Table) -> Path:
    parquet.write_table(table, path)
    return path


def test_a_column_that_the_reward_needs_and_no_row_has_is_named_at_loading(
    tmp_path: Path, tokenizer: Tokenizer
):
    wanted = Wanted(needed=frozenset({"gold"}))
    with pytest.raises(DataError, match="needs gold: no column of this data, which has prompt, a"):
        data_of(tokenizer, with_column(TIMES), tmp_path / "a.parquet", wanted)


def test_messages_with_such_values_are_plain_too(tmp_path: Path, tokenizer: Tokenizer):
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}")
    row = {
        "prompt": [{"role": "user", "content": "1+1=", "at": dt.datetime(2026, 1, 2)}],  # noqa: DTZ001
        "answer": "2",
    }
    path = written(tmp_path / "a.parquet", pa.Table.from_pylist([row]))
    data = DataConfig(train=str(path), chat_template=str(tmp_path / "t.jinja"))
    assert load_train(data, tokenizer, 64)[0].messages[0]["at"] == "2026-01-02T00:00:00"
