"""Splits by the names of files: nothing held out is trained on, and what is there twice is told."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import msgspec
import pytest

from pipeline.config.schema import DataConfig
from pipeline.data import findings
from pipeline.data.dataset import DataError, Dataset, load_held_out, load_train
from pipeline.data.files import files_of
from pipeline.data.splits import split_of
from pipeline.data.tokenizer import Tokenizer
from tests.paths import MODEL


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


def folder(at: Path, *names: str) -> Path:
    """A folder of these files, each with one prompt, a different one."""
    for number, name in enumerate(names):
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"prompt": f"{number}+1=", "answer": "2"}) + "\n")
    return at


def names(found: list[Path], at: Path) -> list[str]:
    return [path.relative_to(at).as_posix() for path in found]


@pytest.mark.parametrize(
    "name, split",
    [
        ("train-00000-of-00001.parquet", "train"),
        ("test.jsonl", "test"),
        ("gsm8k_dev.jsonl", "validation"),
        ("math.Validation.json", "validation"),
        ("eval2.jsonl", "test"),
        ("part-0.jsonl", ""),
        ("contest.jsonl", ""),
        ("devices.jsonl", ""),
        ("trainer.jsonl", ""),
    ],
)
def test_a_word_between_separators_names_a_split(name: str, split: str):
    assert split_of(name) == split


@pytest.mark.parametrize(
    "there, train, held_out",
    [
        (["train-0.jsonl", "train-1.jsonl", "test-0.jsonl"],
         ["train-0.jsonl", "train-1.jsonl"], ["test-0.jsonl"]),
        (["train.jsonl", "validation.jsonl"], ["train.jsonl"], ["validation.jsonl"]),
        (["train.jsonl", "dev.jsonl", "test.jsonl"], ["train.jsonl"], ["test.jsonl"]),
        (["part-0.jsonl", "part-1.jsonl"], ["part-0.jsonl", "part-1.jsonl"],
         ["part-0.jsonl", "part-1.jsonl"]),
        (["data/train-0.jsonl", "data/test-0.jsonl", "README.md"],
         ["data/train-0.jsonl"], ["data/test-0.jsonl"]),
        (["train/0.jsonl", "test/0.jsonl"], ["train/0.jsonl"], ["test/0.jsonl"]),
        (["train.jsonl", "dataset_infos.json", ".hidden.jsonl"], ["train.jsonl"],
         ["train.jsonl"]),
    ],
)  # fmt: skip
def test_of_a_folder_the_files_of_the_split_are_read(
    tmp_path: Path, there: list[str], train: list[str], held_out: list[str]
):
    at = folder(tmp_path / "d", *there)
    assert names(files_of(str(at), "train"), at) == train
    assert names(files_of(str(at), "held_out"), at) == held_out


@pytest.mark.parametrize(
    "there, use, says",
    [
        (
            ["test.jsonl"],
            "train",
            r"named as the split test, none as train; name those .*test\.jsonl",
        ),
        (["dev.jsonl", "test.jsonl"], "train", "the split test and validation, none as train"),
        (["train.jsonl", "more.jsonl"], "held_out", "the split train, none as test"),
        (["main/a.jsonl", "socratic/b.jsonl"], "train", "found no file, .*main, socratic in it"),
    ],
)
def test_a_folder_without_the_split_is_refused_with_the_way_to_name_files(
    tmp_path: Path, there: list[str], use: str, says: str
):
    with pytest.raises(DataError, match=says):
        files_of(str(folder(tmp_path / "d", *there)), use)


def test_a_saved_data_set_of_a_test_split_alone_is_not_trained_on(tmp_path: Path):
    one = datasets.Dataset.from_list([{"prompt": "1="}])
    datasets.DatasetDict({"test": one}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="has the splits test, but no 'train'"):
        files_of(str(tmp_path / "saved"), "train")
    assert files_of(str(tmp_path / "saved"), "held_out")
    assert files_of(str(tmp_path / "saved" / "test"), "train")
    splits = {"train": one, "validation": one}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "both"))  # pyright: ignore
    assert files_of(str(tmp_path / "both"), "held_out")[0].parent.name == "validation"


def test_what_was_left_out_is_said_where_the_data_is_described(
    tmp_path: Path, tokenizer: Tokenizer
):
    at = folder(tmp_path / "d", "train.jsonl", "test.jsonl")
    found = load_train(DataConfig(train=str(at)), tokenizer, 64)
    assert found.summary_line().endswith("split train, without 1 other file (test.jsonl)")
    held = load_held_out(DataConfig(train="x", held_out=str(at)), tokenizer, 64)
    assert [item.prompt for item in held.items] == ["1+1="]
    pattern = load_train(DataConfig(train=str(at / "*.jsonl")), tokenizer, 64)
    assert len(pattern) == 2, "a pattern names its files"
    assert pattern.summary_line().endswith("1 file of other splits, such as test.jsonl")


def test_a_number_of_held_out_prompts_is_of_the_folder_s_own_split(
    tmp_path: Path, tokenizer: Tokenizer
):
    at = folder(tmp_path / "d", "train.jsonl", "test-0.jsonl", "test-1.jsonl")
    for count, there in ((256, ["1+1=", "2+1="]), (1, ["1+1="]), (0, [])):
        held = load_held_out(DataConfig(train=str(at), held_out=count), tokenizer, 64)
        assert [item.prompt for item in held.items] == there
    other = folder(tmp_path / "e", "a.jsonl", "b.jsonl")
    for train in (other, other / "a.jsonl", at / "train.jsonl"):
        assert not len(load_held_out(DataConfig(train=str(train)), tokenizer, 64))
    one = datasets.Dataset.from_list([{"prompt": "1="}])
    splits = {"train": one, "validation": one}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "both"))  # pyright: ignore
    assert len(load_held_out(DataConfig(train=str(tmp_path / "both")), tokenizer, 64)) == 1
    alone = DataConfig(train=str(tmp_path / "both" / "train"))
    assert not len(load_held_out(alone, tokenizer, 64))


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: a.jsonl
  - split: test
    path: [b.json*, nowhere/*, ../../secret.jsonl]
---
# Prose
"""


@pytest.mark.parametrize(
    "card, train, held_out",
    [
        (CARD, ["a.jsonl"], ["b.jsonl"]),
        (
            CARD.replace("\n- config_name: default", "\n- config_name: main"),
            ["a.jsonl"],
            ["b.jsonl"],
        ),
        ("---\nconfigs:\n- data_files: a.jsonl\n---\n", ["a.jsonl"], None),
        ("# Prose\n---\nconfigs: [\n", ["a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl"]),
        ("---\nconfigs: [[[\n---\n", ["a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl"]),
    ],
)
def test_a_card_says_which_file_is_of_which_split(
    tmp_path: Path, card: str, train: list[str], held_out: list[str] | None
):
    at = folder(tmp_path / "d", "a.jsonl", "b.jsonl")
    (at / "README.md").write_text(card)
    assert names(files_of(str(at), "train"), at) == train
    if held_out is None:
        with pytest.raises(DataError, match="the split train, none as test"):
            files_of(str(at), "held_out")
    else:
        assert names(files_of(str(at), "held_out"), at) == held_out


def test_a_card_that_names_one_split_alone_leaves_the_others_to_their_names(tmp_path: Path):
    at = folder(tmp_path / "d", "data/train-0.jsonl", "data/test-0.jsonl")
    (at / "README.md").write_text("---\nconfigs:\n- data_files: data/train-*\n---\n")
    assert names(files_of(str(at), "held_out"), at) == ["data/test-0.jsonl"]


def data_of(tokenizer: Tokenizer, path: Path, prompts: list[str]) -> Dataset:
    path.write_text("".join(f'{{"prompt": "{p}", "answer": "2"}}\n' for p in prompts))
    return load_train(DataConfig(train=str(path)), tokenizer, 64)


def test_prompts_that_are_there_twice_or_held_out_are_told(tmp_path: Path, tokenizer: Tokenizer):
    many = data_of(tokenizer, tmp_path / "many.jsonl", ["1+1=", "2+1="] * 100)
    other = data_of(tokenizer, tmp_path / "other.jsonl", ["2+1=", "3+1="])
    shared, times = findings.overlap_of(many, other)
    assert shared.startswith("1 of 2 held-out prompts are in the training data too: ")
    assert times == (
        f"{tmp_path / 'many.jsonl'}: 200 prompts, of which 2 are different; one is there 100 times"
    )
    spaced = msgspec.structs.replace(other[0], prompt=" 2 +1=\n", tokens=b"")
    assert findings.shared_prompts(many, Dataset("spaces", [spaced])) == 1
    few = data_of(tokenizer, tmp_path / "few.jsonl", [f"{n}+1=" for n in range(300)] + ["1+1="])
    assert list(findings.overlap_of(few, Dataset("none", []))) == [], "1 of 301 is no finding"


def test_tasks_of_darts_repeat_prompts_by_design(tokenizer: Tokenizer):
    train = load_train(DataConfig(train="chain_sums"), tokenizer, 64)
    assert list(findings.overlap_of(train, Dataset("none", []))) == []
