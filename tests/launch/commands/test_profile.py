"""`darts profile`: it adds up, and it names the culprit of a set-up that is bad on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.commands.profile import critical_waits, profile_document, read_timings
from launch.commands.profile_advice import RunFacts, advice
from pipeline.config.load import load
from tests.launch.jobs.jobs import QUICK, ROOT, SIMULATED, Job

CONFIG = load(ROOT / "configs/quickstart.yaml")
PROFILE = [*(key for key in QUICK if not key.startswith(("step.count", "checkpoint"))), *SIMULATED]


def slow_reward(sample: Any) -> float:
    time.sleep(0.2)
    return float(sample.tokens < 20)


def run_profile(tmp_path: Path, *overrides: str) -> Job:
    arguments = ["--steps", "3", "--folder", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    return Job(
        ["profile", "configs/quickstart.yaml", *PROFILE, *overrides, *arguments], tmp_path / "log"
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_slow_reward_is_named(tmp_path: Path) -> None:
    with run_profile(tmp_path, f"reward.python.function={__name__}:slow_reward") as job:
        assert job.wait() == 0, job.text
    found = json.loads((tmp_path / "out").read_text())
    assert found["culprit"]["lane"] == "rewards", job.text
    assert "reward" in found["culprit"]["advice"]
    assert "culprit: rewards, " in job.text
    assert len(found["steps"]) == 3
    for step in found["steps"]:
        whole = sum(piece["seconds"] for piece in step["critical_path"])
        assert whole == pytest.approx(step["step_seconds"], rel=0.02)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_slow_engine_is_named_among_its_peers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with run_profile(tmp_path, "engine.slots=4") as job:
        job.until(lambda: (run / "address").exists())
        directory, config = (run / "address").read_text().strip(), str(run / "config.yaml")
        arguments = ["--stage", directory, "--config", config, "--name", "e1"]
        command = [sys.executable, "-m", "tests.launch.jobs.slow_engine", *arguments]
        with (tmp_path / "e1").open("wb") as log:
            slow = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            try:
                assert job.wait() == 0, job.text
            finally:
                slow.kill()
                slow.wait()
    culprit = json.loads((tmp_path / "out").read_text())["culprit"]
    assert (culprit["lane"], culprit["what"]) == ("engine e1", "decoding"), job.text
    assert "on e1" in culprit["advice"] and "check its machine" in culprit["advice"]


def timing(step: int, path: list[list[Any]], seconds: float) -> dict[str, Any]:
    return {
        "what": "timing", "step": step, "seconds": seconds, "critical_path": path,
        "percentiles": {}, "engines": {}, "lives": [], "stragglers": [],
    }  # fmt: skip


def test_the_first_step_warms_up_and_is_not_in_the_mean(tmp_path: Path) -> None:
    lines = [
        timing(0, [["learner rank 0", "forward and backward", 9.0, ""]], 9.0),
        timing(1, [["engine e0", "decoding", 0.6, ""], ["rewards", "scoring", 0.4, ""]], 1.0),
        timing(2, [["engine e0", "decoding", 0.2, ""], ["rewards", "scoring", 0.8, ""]], 1.0),
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    waits = critical_waits(read_timings(tmp_path), CONFIG)
    assert [(w.lane, round(w.seconds, 3), round(w.share, 3)) for w in waits] == [
        ("rewards", 0.6, 0.6),
        ("engine e0", 0.4, 0.4),
    ]
    steps = profile_document(read_timings(tmp_path), waits)["steps"]
    assert [step["step_seconds"] for step in steps] == [9.0, 1.0, 1.0]


def test_only_an_engine_that_is_much_slower_is_blamed_for_its_pace() -> None:
    facts = RunFacts(config=CONFIG, paces={"e0": 0.010, "e1": 0.040, "e2": 0.012})
    assert "on e1" in advice("engine e1", "decoding", facts)
    assert "on e2" not in advice("engine e2", "decoding", facts)


def test_advice_names_settings_as_they_are_and_none_that_is_followed_already() -> None:
    config = load(ROOT / "configs/quickstart.yaml", ["learner.overlap=off", "engine.slots=8"])
    assert "learner.overlap=group" in advice("", "forward and backward", RunFacts(config=config))
    assert "overlap" not in advice("", "forward and backward", RunFacts(config=CONFIG))
    full = advice("engine e0", "decoding", RunFacts(config=config, slot_wait_share=0.5))
    assert "engine.slots=8 now" in full


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["--steps", "0"], "--steps is 0, but must be at least 1"),
        (["metrics.timing=false"], "metrics.timing: darts profile sets it itself"),
        (["--out", "no/such/p.json"], "no such folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["profile", str(ROOT / "configs/quickstart.yaml"), *arguments])
    assert result.exit_code == 2
    assert said in result.output
