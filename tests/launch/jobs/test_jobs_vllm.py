"""Whole jobs with real vLLM, real sockets and DeepSpeed."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.launch.jobs.jobs import Job, lines, shared_memory, steps_done, train, trained_prompts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def running_in_a_later_step(run: Path) -> int:
    """Responses that are being sampled now, once a step is done; 0 before."""
    live = run / "live.json"
    if not live.exists():
        return 0
    now = json.loads(live.read_text())
    return now["running"] if now["step"] else 0


@pytest.mark.fault("an engine (vLLM) is killed in mid-step", part="engines", by="process")
def test_a_killed_engine_loses_no_trajectory_the_books_balance_and_the_model_exports(
    tmp_path: Path,
) -> None:
    """Promise: what it was sampling goes on, and the run does all its steps; each prompt is trained
    on once, the accounts add up to what engines report, and no process or shared memory is left.
    Bound: the run ends within 500 s of the kill.
    """
    run = tmp_path / "killed"
    before = shared_memory()
    long_steps = ("step.prompts=64", "step.count=3", "eval.every=3", "data.held_out=8")
    with train(run, tmp_path / "killed.log", *long_steps) as job:
        job.until(lambda: steps_done(run) >= 1, 400)
        job.until(lambda: running_in_a_later_step(run) >= 16)
        job.child("engines.worker").send_signal(signal.SIGKILL)
        assert job.wait(500) == 0, job.text
        assert "e0 ended (killed by SIGKILL)" in job.text
        moved = re.search(r"engine e0 lost .*; (\d+) trajectories go on", job.text)
        assert moved is not None
        assert int(moved[1]) > 0, "it was not killed in mid-step"
        assert not job.left(), "a process outlived the run"
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 3
    assert sum(result["tokens"].values()) == result["tokens_reported_by_engines"]
    trained = trained_prompts(run)
    assert len(trained) == 3 * 64, "a group was lost or trained on twice"
    assert max(Counter(prompt for _, prompt in trained).values()) == 1
    groups = lines(run / "decisions.jsonl", "group")
    assert max(Counter(g["group"] for g in groups).values()) == 1
    for group in groups:
        if group["fate"] == "trained":  # on-policy means on-policy
            versions = [member[6] for member in group["members"] if member[5]]
            assert versions == [[group["version"]]] * len(versions)
    gaps = [served["gap"] for served in lines(run / "metrics.jsonl", "served")]
    assert len(gaps) >= 5, "a version was not proved"
    assert max(gaps) < 1e-3, "an engine served weights that are not the learner's"
    own = f"darts-{os.getuid()}-{job.process.pid}-"
    assert not {n for n in shared_memory() - before if n.startswith(own) or "psm" in n}
    exported = tmp_path / "exported"
    with Job(["export", str(run), str(exported)], tmp_path / "export.log") as job:
        assert job.wait(60) == 0, job.text
    config = ["eval", "configs/quickstart.yaml", f"model={exported}", "data.held_out=8"]
    with Job([*config, "--out", str(tmp_path / "eval")], tmp_path / "eval.log") as job:
        assert job.wait(200) == 0, job.text
    metrics = json.loads((tmp_path / "eval" / "result.json").read_text())
    assert metrics["steps"] == 0
    assert 0 <= metrics["accuracy_before"] <= 1


@pytest.mark.long
@pytest.mark.fault("Ctrl-C with vLLM", part="people", by="process")
def test_ctrl_c_ends_vllm_too_within_ten_seconds(tmp_path: Path) -> None:
    """Promise: status 130, a checkpoint, and neither process nor shared memory left.
    Bound: 10 s, and 1 s for the last process.
    """
    run = tmp_path / "stopped"
    before = shared_memory()
    with train(run, tmp_path / "stopped.log") as job:
        job.until(lambda: steps_done(run) >= 1, 400)
        job.process.send_signal(signal.SIGINT)
        assert job.wait(10) == 130, job.text
        assert not job.left(1.0), "a process outlived the run"
    assert list((run / "checkpoints").glob("step-*")), "no checkpoint was cut"
    own = f"darts-{os.getuid()}-{job.process.pid}-"
    assert not {n for n in shared_memory() - before if n.startswith(own) or "psm" in n}
