"""Paced runs, on real engines: no step is shorter than its cost, evaluations are not held back, and
everything that shows figures says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.report.build import build_page
from launch.simulate.replay import replay_run
from tests.launch.jobs.jobs import QUICK, lines, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEP_MS = 30
PACE = (
    f"engine.pace.fixed_ms={STEP_MS}",
    "learner.pace={logprob_us: 100, forward_us: 300, backward_us: 700}",
    "weights={pace: 1.0e6, bytes: 200000}",
)
NAME = (
    f"fixed_ms {STEP_MS}, learner logprob_us 100 forward_us 300 backward_us 700, weights 0.001 GB/s"
)


@pytest.fixture(
    scope="module", params=[pytest.param("transformers", marks=pytest.mark.long), "vllm"]
)
def paced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three steps of a run: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("paced")
    run = folder / "run"
    sizes = ("step.count=3", "eval.every=3", "data.held_out=8", "eval.samples=2")
    same = (f"engine.kind={request.param}", "learner.overlap=off", "selector=all")
    spare = ("budget.redundancy=1",)
    with train(run, folder / "log", *QUICK, *sizes, *same, *spare, *PACE) as job:
        assert job.wait() == 0, job.text
    return run, job.text


def test_no_step_is_shorter_than_its_cost(paced: tuple[Path, str]) -> None:
    for step in lines(paced[0] / "metrics.jsonl", "step"):
        # The longest response decodes alone at the end; 5 ms may pass between two steps for free.
        assert step["generation_s"] > step["tokens_max"] * (STEP_MS - 5) / 1e3
        computed = step["learner"]["computed_share"] * step["tokens_trained"]
        assert step["learner"]["backward_s"] >= computed * 1e-3
        assert step["learner"]["publish_s"] >= 0.2
        assert step["learner"]["paced_late_s"] >= 0.0


def test_only_steps_of_training_are_counted(paced: tuple[Path, str]) -> None:
    run = paced[0]
    steps = lines(run / "metrics.jsonl", "step")
    counted = [
        line.get("paced", {"steps": 0})["steps"] for line in lines(run / "metrics.jsonl", "served")
    ]
    assert counted[0] == 0, "the evaluation before training, and the probes"
    # An engine takes requests as they come, so that a response may begin some steps later.
    for count, step in zip(counted[1:], steps, strict=True):
        assert step["tokens_max"] <= count <= step["tokens_max"] + 16
    result = json.loads((run / "result.json").read_text())
    assert result["paced"]["name"] == NAME
    assert result["paced"]["steps"] == sum(counted)


def test_what_shows_figures_says_that_they_are_paced(paced: tuple[Path, str]) -> None:
    run, printed = paced
    assert f"paced: {NAME}: times are emulated" in printed
    assert printed.count(f"  paced: {NAME}\n") == 3, "each step's line"
    assert "engine steps, " in printed
    assert all(line["paced"] == NAME for line in lines(run / "metrics.jsonl", "step"))
    pytest.importorskip("bokeh")
    assert f"paced: {NAME} (run)" in build_page([run], print)


def test_it_is_predicted_without_a_profile(paced: tuple[Path, str]) -> None:
    found = replay_run(paced[0], None, 1.0)
    # Not faster than predicted, but for what is rounded; slower as far as the machine is busy.
    assert found.predicted < 1.1 * found.measured
