"""Answers as data sets have them: bad lines only for a reward that compares with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.config.load import load
from pipeline.config.schema import DataConfig
from pipeline.data.dataset import DataError, Dataset, load_train
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.wanted import Wanted, wanted_of
from pipeline.stage import build
from tests.paths import MODEL, ROOT

UNREAD = Wanted(answers=False)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


def data_of(
    folder: Path, tokenizer: Tokenizer, rows: list[dict[str, Any]], wanted: Wanted, **data: Any
) -> Dataset:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": "1+1=", **row}) + "\n" for row in rows))
    return load_train(DataConfig(train=str(path), **data), tokenizer, 64, wanted)


def answers(data: Dataset) -> list[str]:
    return [item.answer for item in data.items]


@pytest.mark.parametrize(
    "answer, text",
    [
        (True, "true"),
        (["2", "two"], '["2","two"]'),
        ({"cases": [1]}, '{"cases":[1]}'),
        (None, ""),
        ("", ""),
        (2, "2"),
        (2.0, "2"),
        (2.5, "2.5"),
    ],
)
def test_a_reward_that_needs_no_answer_gets_any_as_text(
    tmp_path: Path, tokenizer: Tokenizer, answer: Any, text: str
):
    rows = [{"answer": answer}, {"answer": "x"}, {}]
    data = data_of(tmp_path, tokenizer, rows, UNREAD)
    assert answers(data) == [text, "x", ""]
    assert data[0].columns["answer"] == answer


def test_the_order_of_rows_chooses_no_other_field(tmp_path: Path, tokenizer: Tokenizer):
    rows = [{"task": "code", "solution": None}, {"task": "math", "solution": "2", "answer": None}]
    for given in (rows, rows[::-1]):
        data = data_of(tmp_path, tokenizer, given, UNREAD)
        assert sorted(answers(data)) == ["", "2"]
        assert data.sources[0].answer == "solution"
    with pytest.raises(DataError, match=r"a\.jsonl:1: solution is null, expected text"):
        data_of(tmp_path, tokenizer, rows, Wanted())


def test_data_of_which_no_answer_is_asked_says_so(tmp_path: Path, tokenizer: Tokenizer):
    data = data_of(tmp_path, tokenizer, [{"answer": "2"}], Wanted(), answer="none")
    assert (answers(data), data.sources[0].answer) == ([""], "")
    config = load(ROOT / "configs/quickstart.yaml")
    with pytest.raises(DataError, match=r"data\.answer is none, and the reward exact compares"):
        build.check_answers(config, data)


def test_a_field_that_no_row_has_is_named(tmp_path: Path, tokenizer: Tokenizer):
    with pytest.raises(DataError, match=r"no row has the field 'gold' .*fields: prompt, answer"):
        data_of(tmp_path, tokenizer, [{"answer": "2"}], UNREAD, answer="gold")


@pytest.mark.parametrize(
    "answer, says",
    [
        ("", "answer is empty, expected text or a number"),
        ("  ", "answer is empty"),
        (True, "answer is true or false"),
        (["2"], "answer is a list"),
    ],
)
def test_what_no_response_can_equal_is_a_bad_line_for_a_reward_that_compares(
    tmp_path: Path, tokenizer: Tokenizer, answer: Any, says: str
):
    with pytest.raises(DataError, match=rf"a\.jsonl:2: {says}"):
        data_of(tmp_path, tokenizer, [{"answer": "2"}, {"answer": answer}], Wanted())
    data = data_of(tmp_path, tokenizer, [{"answer": "2"}, {"answer": answer}], Wanted(),
                   bad_lines="skip")  # fmt: skip
    assert len(data) == 1


@pytest.mark.parametrize(
    "number, says", [(math.nan, r"no finite number \(NaN\)"), (math.inf, "inf")]
)
def test_numbers_that_are_none_are_bad_lines_and_whole_ones_have_no_point(
    tmp_path: Path, tokenizer: Tokenizer, number: float, says: str
):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": ["1=", "2="], "answer": [2.0, number]}), path)
    with pytest.raises(DataError, match=rf"a\.parquet\[1\]: answer is {says}"):
        load_train(DataConfig(train=str(path)), tokenizer, 64)
    data = load_train(DataConfig(train=str(path), bad_lines="skip"), tokenizer, 64)
    assert answers(data) == ["2"]


def test_a_configuration_says_what_of_the_data_is_read():
    def of(*overrides: str) -> Wanted:
        return wanted_of(load(ROOT / "configs/quickstart.yaml", overrides))

    here = "tests.pipeline.data.test_answers:"
    assert of() == Wanted(answers=True, columns=frozenset())
    trl = of(f"reward.python.function={here}named")
    assert (trl.answers, trl.columns) == (False, {"gold", "hint"})
    assert trl.needed == {"gold"}
    assert of(f"reward.python.function={here}everything").columns is None
    verl = of(f"reward.python.function={here}compute_score")
    assert verl.columns == {"data_source", "reward_model", "extra_info"}
    both = of(f"reward.sum.of=[exact, {{python: {{function: '{here}named'}}}}]")
    assert (both.answers, both.columns, both.needed) == (True, {"gold", "hint"}, {"gold"})
    assert of("environment=calculator").columns == frozenset()
    assert of(f"environment.python.function={here}turn").columns is None


def named(completions: list[str], gold: list[str], hint: Any = None) -> list[float]:
    return [float(c == g) for c, g in zip(completions, gold, strict=True)]


def everything(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(columns)) for _ in completions]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any) -> float:
    return float(solution_str == ground_truth)


def turn(turn: Any) -> None:
    del turn
