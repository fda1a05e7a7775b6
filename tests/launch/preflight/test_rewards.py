"""A dry run calls the reward as a run would, with rows of the data and the gold answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from launch.cli import app
from launch.preflight.rewards import RewardProblems, Tried, try_reward
from pipeline.config.load import load
from pipeline.data.dataset import load_train
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.wanted import wanted_of
from tests.paths import MODEL, ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
HERE = "tests.launch.preflight.test_rewards:"


def tagged(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    wanted = [f"<answer>{text}</answer>" for text in answer]
    return [float(w in c) for c, w in zip(completions, wanted, strict=True)]


def half(completions: list[str], **columns: Any) -> list[float]:
    return [0.5] * len(completions)


def broken(completions: list[str], **columns: Any) -> list[float]:
    raise KeyError("unit")


def picky(completions: list[str], **columns: Any) -> list[float]:
    if "boxed" not in completions[0]:
        raise ValueError("no box")
    return [1.0]


def silent(completions: list[str], **columns: Any) -> list[None]:
    return [None] * len(completions)


async def tried(folder: Path, *overrides: str, **row: Any) -> Tried:
    path = folder / "a.jsonl"
    path.write_text(json.dumps({"prompt": "1+1=", "answer": "2", **row}) + "\n")
    given = [f"data.train={path}", "data.held_out=0", "eval.every=0", *overrides]
    config, tokenizer = load(QUICKSTART, given), Tokenizer(MODEL)
    data = load_train(config.data, tokenizer, 64, wanted_of(config))
    return await try_reward(config, tokenizer, [data])


@pytest.mark.parametrize(
    "reward, written",
    [
        ("reward=exact", "'#2'"),
        ("reward.exact.marker=Answer:", "'Answer:2'"),
        ("reward=math", r"'\\boxed{2}'"),
        (f"reward.python.function={HERE}tagged", "'<answer>2</answer>'"),
        ("reward.sum.of=[{exact: {marker: '%'}}]", "'%2'"),
    ],
)
async def test_the_gold_answer_is_found_in_the_form_that_the_reward_wants(
    tmp_path: Path, reward: str, written: str
):
    found = await tried(tmp_path, reward)
    assert found.warnings == ()
    assert found.line.endswith(f"the gold answer, written as {written}, earned 1")


async def test_a_gold_answer_that_earns_less_than_a_correct_one_is_told(tmp_path: Path):
    found = await tried(tmp_path, f"reward.python.function={HERE}half")
    [line] = found.warnings
    assert line.startswith("reward.python: the gold answer itself earned 0.5 at most")
    assert (
        await tried(tmp_path, f"reward.python.function={HERE}half", "eval.correct=0.5")
    ).warnings == ()


async def test_a_reward_that_fails_on_every_row_is_refused_with_its_traceback(tmp_path: Path):
    with pytest.raises(RewardProblems, match=r"KeyError: 'unit'") as caught:
        await tried(tmp_path, f"reward.python.function={HERE}broken")
    assert "Traceback" in str(caught.value)
    assert "a.jsonl:1" in str(caught.value)


async def test_one_that_fails_on_some_responses_is_told(tmp_path: Path):
    found = await tried(tmp_path, f"reward.python.function={HERE}picky")
    [line] = found.warnings
    assert "failed in 1 of 2 calls, last with " in line
    assert found.line.endswith("earned 1")


async def test_a_reward_without_an_opinion_and_data_without_answers_are_named_so(tmp_path: Path):
    found = await tried(tmp_path, f"reward.python.function={HERE}silent")
    assert found.line.endswith("no opinion on any")
    none = await tried(tmp_path, f"reward.python.function={HERE}half", answer=None)
    assert none.line.endswith("which have no answers")


def dry(*overrides: str) -> Result:
    given = ["train", str(QUICKSTART), "--dry-run", "data.held_out=0", "eval.every=0", *overrides]
    return CliRunner().invoke(app, given)


def test_a_dry_run_says_what_it_tried_and_what_it_could_not(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    result = dry(f"data.train={path}", f"reward.python.function={HERE}broken")
    assert result.exit_code == 2
    assert "reward.python: failed in all of" in result.stderr
    result = dry(f"data.train={path}")
    assert result.exit_code == 0, result.output
    assert "reward: exact, called 1 time with 1 row of the data" in result.stdout
    assert "tokens: a response ends with $ (1, by generation_config.json, config" in result.stdout
    assert "not looked at: what the engines and the learner need of memory" in result.stdout


def test_a_password_in_an_address_is_not_shown(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    url = "reward.http.url=http://me:hunter2@127.0.0.1:9/x"
    for more in ("reward.http.tries=1", "reward.http.timeout_s=99"):
        result = dry(f"data.train={path}", more, url)
        assert result.exit_code == 2
        assert "127.0.0.1" in result.stderr or "timeout_s is 99" in result.stderr
        assert "hunter2" not in result.output + result.stderr
