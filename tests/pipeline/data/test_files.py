"""Files, folders and patterns: every row once, in order, with the place where it stands."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.config.schema import DataConfig, SourceConfig
from pipeline.data.dataset import Dataset, load_held_out, load_train
from pipeline.data.files import DataError, files_of, rows_of
from pipeline.data.tokenizer import Tokenizer
from tests.paths import MODEL


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


def sums(*terms: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{n}+1=", "answer": str(n + 1), **more} for n in terms]


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path: Path, rows: list[dict[str, Any]], group: int = 2) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def prompts(source: str | Path, split: str = "train") -> list[tuple[str, str]]:
    problems: list[str] = []
    found = [(where, row["prompt"]) for where, row in rows_of(str(source), split, problems.append)]
    assert problems == []
    return found


def test_parquet_of_several_row_groups_is_read_in_order_with_its_rows(tmp_path: Path):
    path = table(tmp_path / "a.parquet", sums(*range(5)))
    assert parquet.ParquetFile(path).num_row_groups == 3
    assert prompts(path) == [(f"{path}[{n}]", f"{n}+1=") for n in range(5)]


def test_a_file_is_told_by_its_content_whatever_it_is_called(tmp_path: Path):
    assert prompts(table(tmp_path / "a.jsonl", sums(1)))[0][1] == "1+1="
    path = lines(tmp_path / "b.parquet", sums(2))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors begin a file
    assert prompts(path) == [(f"{path}:1", "2+1=")]


def test_folders_and_patterns_are_read_file_by_file_in_the_order_of_their_names(tmp_path: Path):
    table(tmp_path / "b.parquet", sums(3, 4))
    lines(tmp_path / "a.jsonl", sums(1, 2))
    (tmp_path / "README.md").write_text("not data")
    assert [prompt for _, prompt in prompts(tmp_path)] == ["1+1=", "2+1=", "3+1=", "4+1="]
    assert [prompt for _, prompt in prompts(tmp_path / "*.parquet")] == ["3+1=", "4+1="]
    assert files_of(str(tmp_path)) == [tmp_path / "a.jsonl", tmp_path / "b.parquet"]


def test_a_saved_data_set_is_read_by_its_split(tmp_path: Path):
    one, two = datasets.Dataset.from_list(sums(1, 2)), datasets.Dataset.from_list(sums(3))
    both = tmp_path / "both"
    datasets.DatasetDict({"train": one, "test": two}).save_to_disk(str(both))
    assert prompts(both) == [(f"{both / 'train'}[0]", "1+1="), (f"{both / 'train'}[1]", "2+1=")]
    assert [prompt for _, prompt in prompts(both, "held_out")] == ["3+1="]
    assert [prompt for _, prompt in prompts(both / "test")] == ["3+1="]
    one.save_to_disk(str(tmp_path / "single"))
    assert len(prompts(tmp_path / "single")) == 2
    other = tmp_path / "other"
    datasets.DatasetDict({"easy": one, "hard": two}).save_to_disk(str(other))
    with pytest.raises(DataError, match=r"splits easy, hard, but no 'train'; name one"):
        prompts(other)
    assert files_of(str(both))[0].suffix == ".arrow"


def test_a_file_to_train_on_is_never_read_as_the_held_out_prompts(
    tmp_path: Path, tokenizer: Tokenizer
):
    one, two = (datasets.Dataset.from_list(sums(number)) for number in (1, 2))
    datasets.DatasetDict({"train": one}).save_to_disk(str(tmp_path / "saved"))
    for path in (lines(tmp_path / "a.jsonl", sums(1, 2)), tmp_path / "saved"):
        assert len(load_held_out(DataConfig(train=str(path)), tokenizer, 64)) == 0
    datasets.DatasetDict({"train": one, "validation": two}).save_to_disk(str(tmp_path / "both"))
    [item] = load_held_out(DataConfig(train=str(tmp_path / "both")), tokenizer, 64).items
    assert item.prompt == "2+1="


def test_a_saved_data_set_without_the_package_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    datasets.Dataset.from_list(sums(1)).save_to_disk(str(tmp_path / "saved"))
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"pip install 'darts-rl\[datasets\]'"):
        prompts(tmp_path / "saved")


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "1+1="}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 0},
}


def loaded(tokenizer: Tokenizer, rows: list[dict[str, Any]], path: Path, **data: Any) -> Dataset:
    return load_train(DataConfig(train=str(table(path, rows)), **data), tokenizer, 64)


@pytest.fixture
def plain_template(tmp_path: Path) -> str:
    path = tmp_path / "plain.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return str(path)


def test_the_answer_is_found_in_the_layouts_of_verl_and_of_trl(
    tmp_path: Path, tokenizer: Tokenizer, plain_template: str
):
    verl = loaded(tokenizer, [VERL], tmp_path / "v.parquet", chat_template=plain_template)
    assert (verl[0].prompt, verl[0].answer) == ("1+1=", "2")
    assert verl[0].columns == VERL  # all of it reaches the reward
    assert verl.summary_line().endswith("v.parquet: 1 prompt, answer: reward_model.ground_truth")
    trl = loaded(tokenizer, [{"prompt": "1+1=", "solution": "2"}], tmp_path / "t.parquet")
    assert trl[0].answer == "2"
    assert trl.summary_line().endswith("1 prompt, answer: solution")
    # darts' own name comes first, and a named field before any
    both = {"prompt": "1+1=", "solution": "3", "answer": "2", "meta": {"gold": 4}}
    assert loaded(tokenizer, [both], tmp_path / "b.parquet")[0].answer == "2"
    named = loaded(tokenizer, [both], tmp_path / "n.parquet", answer="meta.gold")
    assert named[0].answer == "4"
    none = loaded(tokenizer, [{"prompt": "1+1="}], tmp_path / "0.parquet")
    assert none[0].answer == ""
    assert none.summary_line().endswith("answer: none")


def test_a_ground_truth_of_any_kind_is_read_by_verls_reward_and_a_list_elsewhere_refused(
    tmp_path: Path, tokenizer: Tokenizer, plain_template: str
):
    row = VERL | {"reward_model": {"style": "rule", "ground_truth": ["2", "two"]}}
    found = loaded(tokenizer, [row], tmp_path / "v.parquet", chat_template=plain_template)
    assert found[0].answer == '["2","two"]'
    with pytest.raises(DataError, match="answer is a list, expected text or a number"):
        loaded(tokenizer, [{"prompt": "1=", "answer": ["1"]}], tmp_path / "l.parquet")


LONG = sums(1, 22222222, 3)


@pytest.mark.parametrize(
    "how, found, told",
    [
        ("drop", ["1+1=", "3+1="], "1 too long and left out"),
        ("cut", ["1+1=", "2+1=", "3+1="], "1 cut"),
    ],
)
def test_long_prompts_are_left_out_or_cut_from_the_left_and_counted(
    tmp_path: Path, tokenizer: Tokenizer, how: str, found: list[str], told: str
):
    path = tmp_path / "a.parquet"
    dataset = loaded(tokenizer, LONG, path, max_prompt_tokens=4, long_prompts=how)
    assert [item.prompt for item in dataset.items] == found
    assert max(len(item.tokens) // 4 for item in dataset.items) == 4
    assert dataset.summary_line() == f"{path}: {len(found)} prompts, {told}, answer: answer"


def test_long_prompts_stop_by_default_and_what_a_template_wrote_is_not_cut(
    tmp_path: Path, tokenizer: Tokenizer, plain_template: str
):
    path = tmp_path / "a.parquet"
    with pytest.raises(DataError) as raised:
        loaded(tokenizer, LONG, path, max_prompt_tokens=4)
    claim = (
        f"{path}[1]: prompt of 11 tokens, but data.max_prompt_tokens is 4; leave long prompts out"
    )
    assert str(raised.value).startswith(claim)
    with pytest.raises(DataError, match="text of a chat template is not cut"):
        loaded(
            tokenizer, LONG, path, max_prompt_tokens=4, long_prompts="cut", chat="always",
            chat_template=plain_template,
        )  # fmt: skip
    with pytest.raises(DataError, match="no usable prompt; first: all 3 are too long; expected"):
        loaded(tokenizer, LONG, path, max_prompt_tokens=1, long_prompts="drop")


def test_several_sources_keep_their_order_fields_and_tags(tmp_path: Path, tokenizer: Tokenizer):
    one = lines(tmp_path / "one.jsonl", [{"q": "1+1=", "gold": 2, "terms": 2}])
    two = table(tmp_path / "two.parquet", sums(5, 6, terms=2))
    data = DataConfig(
        train=(
            SourceConfig(path=str(one), weight=2, tag="easy", prompt="q", answer="gold"),
            SourceConfig(path=str(two)),
        )
    )
    dataset = load_train(data, tokenizer, 64)
    assert [(item.prompt, item.tag) for item in dataset.items] == [
        ("1+1=", "easy"),
        ("5+1=", "terms=2"),
        ("6+1=", "terms=2"),
    ]
    assert [(s.first, s.count, s.weight) for s in dataset.shares] == [(0, 1, 2.0), (1, 2, 1.0)]
    assert load_train(DataConfig(train=str(two)), tokenizer, 64).shares == ()
    assert load_held_out(
        DataConfig(train=data.train, held_out=str(two)), tokenizer, 64
    ).name == str(two)
