"""Every recipe trains the task of the quickstart with real vLLM and DeepSpeed (an hour in all).

Three steps of each with the simulated engine are in the usual suite (`test_every_plugin`).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.recipes import builtin_names
from scripts.faults.records import result_problems, step_problems
from tests.launch.jobs.jobs import Job, lines

STEPS = 30
SMALLER = {"brorl": ("step.prompts=1",)}
"""512 responses a prompt: a step of the quickstart's 16 prompts would take a minute."""
OTHER_PROMPTS = {"loong_rl": ("data.train=loong", "data.long_prompts=drop")}
"""Its method is its data, which the quickstart's model has not learned: it is not held to learn."""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("recipe", builtin_names())
def test_thirty_steps_of_a_recipe_teach_the_model_and_its_books_balance(
    recipe: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    own = (*SMALLER.get(recipe, ()), *OTHER_PROMPTS.get(recipe, ()))
    settings = [f"recipe={recipe}", f"step.count={STEPS}", f"eval.every={STEPS}", *own]
    command = ["train", "configs/quickstart.yaml", "--out", str(run), *settings]
    with Job(command, tmp_path / "log") as job:
        assert job.wait(1000) == 0, job.text
        assert not job.left(), "a process outlived the run"
    assert json.loads((run / "result.json").read_text())["steps"] == STEPS
    assert result_problems(run) == []
    assert step_problems(run) == []
    first, *_, last = lines(run / "metrics.jsonl", "eval")
    assert last["step"] == STEPS
    if recipe not in OTHER_PROMPTS:
        assert last["accuracy"] > first["accuracy"] + 0.1, "it has not learned"
