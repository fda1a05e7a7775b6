"""Whole jobs that are recorded: replayed to the same commands, and the same run twice."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from pipeline.recording.frames import encode_value
from pipeline.recording.reader import Recording
from tests.launch.jobs.jobs import SIMULATED, Job, lines, steps_done, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ORDERED = ["debug.record=true", "debug.ordered=true", "eval.every=3", "data.held_out=8"]


def replay(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["replay", *arguments])
    return result.exit_code, result.stdout + result.stderr


def decisions(run: Path) -> list[dict[str, object]]:
    """All lines of the run, without the clock on the wall."""
    text = (run / "decisions.jsonl").read_text()
    return [{**json.loads(line), "time": 0} for line in text.splitlines()]


def weights(run: Path) -> str:
    [file] = (run / "checkpoints" / "step-000006").rglob("model.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two ordered jobs of one configuration, with two engines and a real learner."""
    folder = tmp_path_factory.mktemp("ordered")
    runs = [folder / "first", folder / "second"]
    for run in runs:
        log = run.with_suffix(".log")
        with train(run, log, *SIMULATED, *ORDERED, "engine.count=2", "engine.slots=12") as job:
            assert job.wait() == 0, job.text
    return runs


def test_an_ordered_run_is_the_same_again_to_the_last_weight(twice: list[Path]) -> None:
    first, second = (
        [encode_value(entry) for entry in Recording(run / "recordings/stage-0001.darts").entries()]
        for run in twice
    )
    assert len(first) > 100
    assert first == second
    assert decisions(twice[0]) == decisions(twice[1])
    assert weights(twice[0]) == weights(twice[1])
    results = [json.loads((run / "result.json").read_text()) for run in twice]
    assert results[0]["accuracy_after"] == results[1]["accuracy_after"]
    assert sum(results[0]["tokens"].values()) == results[0]["tokens_reported_by_engines"] > 0


def test_a_recorded_job_replays_and_another_selector_runs_over_it(twice: list[Path]) -> None:
    file = twice[0] / "recordings/stage-0001.darts"
    status, text = replay(str(twice[0]))
    assert (status, text.endswith("commands, equal\n")) == (0, True), text
    status, text = replay(str(file), "selector=all")
    assert status == 0, text
    assert "| | recorded | simulated: dual_end | simulated: all |" in text
    assert "members that rest on an estimate" in text


@pytest.mark.long
def test_a_killed_and_resumed_job_has_two_recordings_and_both_replay(tmp_path: Path) -> None:
    run = tmp_path / "resumed"
    with train(run, tmp_path / "first.log", *SIMULATED, "debug.record=true") as job:
        job.until(lambda: steps_done(run) >= 3)
        job.child("pipeline.stage").send_signal(signal.SIGKILL)
        assert job.wait() == 1, job.text
    with Job(["train", "--resume", str(run)], tmp_path / "second.log") as job:
        assert job.wait() == 0, job.text
    assert len(lines(run / "metrics.jsonl", "step")) == 6
    status, text = replay(str(run))
    assert status == 0, text
    assert [path.name in text for path in sorted((run / "recordings").iterdir())] == [True] * 2
    assert text.count(", equal") == 2
    resumed = Recording(run / "recordings/stage-0002.darts")
    assert resumed.header.snapshot
