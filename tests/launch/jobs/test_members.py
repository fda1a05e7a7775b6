"""A whole job whose members have hints, are forked, and are judged by the group."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from darts import Run
from launch.cli import app
from tests.launch.jobs.jobs import lines, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OWN = [
    "engine.kind=simulated",
    "selector=tests.launch.jobs.members:Explore",
    "reward=tests.launch.jobs.members:AboveTheMean",
    "data.variants=[answer]",
    "budget.uniform.redundancy=1",
    "learner.max_staleness=1",
    "sampling.markers=['#','9']",
]


def test_a_job_trains_on_variants_forks_and_rewards_of_groups(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with train(run, tmp_path / "log", *OWN) as job:
        assert job.wait() == 0, job.text
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 6
    assert sum(result["tokens"].values()) == result["tokens_reported_by_engines"] > 0
    trained = [g for g in lines(run / "decisions.jsonl", "group") if g["fate"] == "trained"]
    hinted = [g for g in trained if g.get("variants")]
    assert hinted and all([*g["variants"].values()] == ["answer:0.5"] for g in hinted)
    assert all(at == 5 for g in hinted for _, at in g["forks"].values())
    for group in trained:
        rewards = [reward for _, _, _, _, reward, chosen, *_ in group["members"] if chosen]
        lengths = [tokens for _, _, tokens, _, _, chosen, *_ in group["members"] if chosen]
        mean = sum(lengths) / len(lengths)
        assert rewards == [float(length > mean) for length in lengths]
    assert not [step for step in lines(run / "metrics.jsonl", "step") if "old_refused" in step]
    assert result["kinds"]["marked"] > 0, "an engine's worker has found a marker in the tokens"


def test_a_job_trains_on_solutions_of_the_data_and_says_so_everywhere(tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ("engine.kind=simulated", "recipe=luffy", "step.count=3", "rollouts.every=3")
    with train(run, tmp_path / "log", *more) as job:
        assert job.wait() == 0, job.text
    result = json.loads((run / "result.json").read_text())
    steps = lines(run / "metrics.jsonl", "step")
    for step in steps:
        assert step["foreign"]["members"] == step["groups"]["trained"] == 4, "one a group"
        assert 0 < step["learner"]["foreign"] < 1, "the rank has trained on them"
        assert step["samples"] == 4 * 4 and step["reward"] < 1, "of what was sampled"
        assert step["learner"]["mismatch_max"] < 20, "of what was sampled, too"
    tokens = sum(step["foreign"]["tokens"] for step in steps)
    assert result["foreign"] == {"members": 12, "tokens": tokens}
    assert sum(result["tokens"].values()) == result["tokens_reported_by_engines"] > 0
    assert f"foreign: 12 responses trained on that were not sampled here, {tokens}" in job.text
    [group, *_] = [g for g in lines(run / "decisions.jsonl", "group") if g["fate"] == "trained"]
    [(member, source)] = group["foreign"].items()
    assert source == "solution"
    rewards = {str(m[0]): m[4] for m in group["members"]}
    assert rewards[member] == 1.0, "it is scored as any other"
    told = CliRunner().invoke(app, ["explain", str(run), str(group["group"])], color=False)
    assert f"{member} was not sampled here: the data's solution" in told.output
    [solution, *_] = [r for r in Run(run).rollouts() if r["foreign"]]
    assert solution["confidence"] is None, "no engine gave it a logprob"
    page = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(run), "--out", str(page)]).exit_code == 0
    assert "not sampled for it (solution)" in page.read_text()
    assert "responses trained on, not sampled here" in page.read_text()


def test_a_column_that_no_line_has_is_named_before_anything_starts(tmp_path: Path) -> None:
    with train(tmp_path / "run", tmp_path / "log", *OWN, "data.variants=[clue]") as job:
        assert job.wait() != 0
        assert "no field 'clue' (data.variants)" in job.text


def test_a_plugin_that_names_what_is_not_loaded_is_named_before_anything_starts(
    tmp_path: Path,
) -> None:
    with train(tmp_path / "run", tmp_path / "log", *OWN, "data.variants=[]") as job:
        assert job.wait() != 0
        assert "variant 'answer:0.5' names no column that is loaded" in job.text
