"""What a user of verl or TRL brings along runs here unchanged: data, reward, chat template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.jobs.jobs import ROOT, lines, train
from tests.user_code import trl_chain_sums, verl_chain_sums

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEMPLATE = """
{%- for message in messages -%}
    {{- '?' if message['role'] == 'user' else ';' -}}{{- message['content'] -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ':' -}}{%- endif -%}
"""
"""In the tiny model's alphabet."""
SMALL = (
    "step.count=3",
    "learner.warmup_steps=2",
    "step.prompts=2",
    "group.size=2",
    "sampling.max_tokens=32",
)
ENGINE = ("engine.kind=simulated", "eval.every=3", "eval.samples=1", "checkpoint.every=0")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The tiny model, with a chat template as any instruct model has one."""
    copy = tmp_path / "model"
    shutil.copytree(ROOT / "models" / "chain-sums", copy)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config["chat_template"] = TEMPLATE
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    return copy


def of_verl(folder: Path) -> list[str]:
    verl_chain_sums.prepare(folder)
    return [
        f"data.train={folder / 'train.parquet'}",
        f"data.held_out={folder / 'test.parquet'}",
        f"reward.python.function={ROOT / 'tests/user_code/verl_chain_sums.py'}",
    ]


def of_trl(folder: Path) -> list[str]:
    trl_chain_sums.prepare(str(folder / "saved"))
    module = "tests.user_code.trl_chain_sums"
    return [
        f"data.train={folder / 'saved'}",
        f"data.held_out={folder / 'saved'}",
        f"reward.python.function=[{module}:format_reward_func, {module}:reward_func]",
    ]


@pytest.mark.parametrize(
    "bring, answer, possible",
    [(of_verl, "reward_model.ground_truth", {0.0, 0.1, 1.0}), (of_trl, "none", {0.0, 1.0, 2.0})],
    ids=["verl", "trl"],
)
def test_data_and_reward_of_another_project_train_for_three_steps(
    tmp_path: Path,
    model: Path,
    bring: Callable[[Path], list[str]],
    answer: str,
    possible: set[float],
) -> None:
    run = tmp_path / "run"
    own = [f"model={model}", *bring(tmp_path), *SMALL, *ENGINE]
    with train(run, tmp_path / "log", *own) as job:
        assert job.wait() == 0, job.text
    assert f"20 prompts, answer: {answer}" in job.text
    steps = lines(run / "metrics.jsonl", "step")
    assert len(steps) == 3
    warned = [line["text"] for line in lines(run / "metrics.jsonl", "warning")]
    assert not [text for text in warned if "reward" in text and "are different" not in text]
    groups = [g for g in lines(run / "decisions.jsonl", "group") if g["fate"] == "trained"]
    assert len(groups) == 6
    rewards = [member[4] for group in groups for member in group["members"] if member[5]]
    assert len(rewards) == 12
    assert set(rewards) <= possible, "a reward failed"
    [sample, *_] = sorted((run / "samples").iterdir())
    assert "?7+9+2=:" in sample.read_text(), "the prompt did not go through the template"
