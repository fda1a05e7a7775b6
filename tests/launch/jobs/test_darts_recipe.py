"""`configs/darts.yaml` on real processes: does each mechanism of the paper act in a run?

Source of the mechanisms: arXiv 2605.30859. The engine has no model, so that lengths vary as in
the beginning for the whole run; learner, sockets, budget and selector are those of any run.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.launch.jobs.jobs import SIMULATED, lines, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROMPTS = 12


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The recipe with a data set of 12 prompts, 14 steps of 4: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("recipe")
    data = folder / "sums.jsonl"
    rows = [{"prompt": f"{n}+{n + 1}=", "answer": str(2 * n + 1)} for n in range(1, PROMPTS + 1)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = folder / "run"
    sizes = ("step.count=14", "group.size=6", f"data.train={data}", "data.held_out=0")
    with train(run, folder / "log", *SIMULATED, *sizes, config="configs/darts.yaml") as job:
        assert job.wait() == 0, job.text
    return run, job.text


def steps_of(recipe: tuple[Path, str]) -> list[dict[str, Any]]:
    return lines(recipe[0] / "metrics.jsonl", "step")


def test_a_prompts_moving_average_is_read_from_the_second_epoch_on(
    recipe: tuple[Path, str],
) -> None:
    known = [step["budget"]["known"] for step in steps_of(recipe)]
    assert sum(known[: PROMPTS // 4]) == 0, "none has been sampled before"
    assert all(count > 0 for count in known[PROMPTS // 4 + 1 :]), known


def test_some_groups_are_pruned_at_m_up_and_others_wait_for_their_longest(
    recipe: tuple[Path, str],
) -> None:
    steps = steps_of(recipe)
    pruned = sum(step.get("choices", {}).get("pruned", 0) for step in steps)
    assert 0 < pruned < sum(step["groups"]["trained"] for step in steps)
    decisions = [
        json.loads(line) for line in (recipe[0] / "decisions.jsonl").read_text().splitlines()
    ]
    by_prompt = {
        (line["step"], prompt): count
        for line in decisions
        if line["what"] == "budget"
        for prompt, count, _ in line["prompts"]
    }
    at_most = [
        by_prompt[line["step"], line["prompt"]]
        for line in decisions
        if line["what"] == "decision" and "pruned" in line["why"]
    ]
    assert set(at_most) == {12}, "M_up = 2 M, and nobody else"


def test_the_expected_time_of_generation_is_within_a_factor_of_two_of_the_measured(
    recipe: tuple[Path, str],
) -> None:
    late = steps_of(recipe)[10:]
    ratios = [step["generation_predicted_s"] / step["generation_s"] for step in late]
    assert 0.5 < statistics.median(ratios) < 2.0, ratios


def test_tokens_are_streamed_and_their_logprobs_computed_ahead(recipe: tuple[Path, str]) -> None:
    for step in steps_of(recipe):
        assert step["tokens_streamed"] > 0
        assert step["learner"]["ahead_s"] > 0


def test_overlong_responses_are_shaped(recipe: tuple[Path, str]) -> None:
    assert sum(step.get("rewards_shaped", 0) for step in steps_of(recipe)) > 0


def test_the_run_ends_with_lines_on_what_its_mechanisms_did(recipe: tuple[Path, str]) -> None:
    run, printed = recipe
    steps, result = steps_of(recipe), json.loads((run / "result.json").read_text())
    known = sum(int(step["budget"]["known"]) for step in steps)
    planned = known + sum(int(step["budget"]["unseen"]) for step in steps)
    pruned = sum(step.get("choices", {}).get("pruned", 0) for step in steps)
    assert f"adaptive: {known} of {planned} prompts known, {pruned} groups at M_up" in printed
    assert result["adaptive"] == {
        "prompts_known": known, "prompts_planned": planned, "pruned": pruned
    }  # fmt: skip
    assert result["tokens_streamed"] == sum(step["tokens_streamed"] for step in steps)
    assert "expected by the budget" in printed and "tokens streamed" in printed
    assert f"overlong: {result['rewards_shaped']} rewards shaped" in printed
