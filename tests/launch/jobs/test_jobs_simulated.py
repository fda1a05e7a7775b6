"""Whole jobs with a real learner, real sockets and an engine without a model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from pipeline.coordinator.token_ledger import ACCOUNTS
from pipeline.observability.chrome_trace import ENGINE, LEARNER, PATH, REWARDS, STAGE, WEIGHTS_ROW
from tests.launch.jobs.jobs import (
    QUICK,
    ROOT,
    SIMULATED,
    Job,
    check_timing,
    lines,
    steps_done,
    train,
    trained_prompts,
)
from tests.launch.jobs.kill_often import left_by
from tests.traces import arrows, checked_spans

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("jobs") / "undisturbed"
    with train(run, run.parent / "undisturbed.log", *SIMULATED, "metrics.trace_steps=2") as job:
        assert job.wait() == 0, job.text
    return run


def test_a_run_leaves_every_file_that_it_promises(undisturbed: Path) -> None:
    result = json.loads((undisturbed / "result.json").read_text())
    assert result["steps"] == 6
    assert sum(result["tokens"].values()) == result["tokens_reported_by_engines"] > 0
    for name in ("config.yaml", "about.json", "metrics.jsonl", "decisions.jsonl", "logs/stage.log"):
        assert (undisturbed / name).stat().st_size > 0, name
    assert list((undisturbed / "tensorboard").iterdir())
    assert sorted(p.name for p in (undisturbed / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
        "step-000006",
    ]


def test_top_and_explain_tell_of_a_run_that_is_over(undisturbed: Path) -> None:
    frame = CliRunner().invoke(app, ["top", str(undisturbed), "--once"])
    assert frame.exit_code == 0, frame.output
    for part in ("undisturbed · done · 6 of 6 steps done", "metrics of step 6", "trained "):
        assert part in frame.output
    last = json.loads((undisturbed / "live.json").read_text())
    assert last["ledger"] == json.loads((undisturbed / "result.json").read_text())["tokens"]

    def explained(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["explain", str(undisturbed), *arguments])
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    [worst, *_] = json.loads(explained("--worst", "3", "--json"))
    told = json.loads(explained(str(worst["group"]), "--json"))
    assert told["prompt_text"].endswith("=")
    assert told["decisions"]
    assert told["budget"]["candidates"] == len(told["candidates"])
    assert "trained on" in explained(str(worst["group"]))
    groups = json.loads(explained("--worst", "1000", "--json"))
    trained = sum(group["tokens_trained"] for group in groups)
    assert trained == last["ledger"]["trained"]


def test_the_trace_of_the_first_steps_is_valid_and_names_every_legs_fate(
    undisturbed: Path,
) -> None:
    document = json.loads((undisturbed / "trace.json").read_text())
    rows = checked_spans(document)
    assert [span["name"] for span in rows[STAGE, 1]] == ["step 1", "step 2"]
    fates = {s["name"] for (process, row), spans in rows.items() if process >= ENGINE and row
             for s in spans}  # fmt: skip
    assert "trained" in fates
    assert fates <= {*ACCOUNTS, "deferred"}, "the ledger's words, or the group's"
    work = [span["name"] for span in rows[LEARNER, 1]]
    assert work.count("optimizer step") == work.count("publishing weights") == 2
    loads = [span["name"] for span in rows[ENGINE, WEIGHTS_ROW]]
    assert {"receiving weights", "loading weights", "proving weights"} <= set(loads)
    assert rows[REWARDS, 1] and rows[PATH, 1]
    assert arrows(document), "from the last chunk to the training"


def test_the_critical_path_of_every_step_adds_up_to_its_time(undisturbed: Path) -> None:
    check_timing(undisturbed, {"inter_token_s", "reward_s", "weights_load_s"})


def test_engines_without_a_model_prove_nothing_and_every_record_says_so(undisturbed: Path) -> None:
    steps = lines(undisturbed / "metrics.jsonl", "step")
    loads = [(step["weights_proved"], step["weights_unsure"]) for step in steps]
    assert loads == [(0, 1)] * 6, "one engine loads one version a step"
    assert {step["tensors_checked"] for step in steps} == {0}
    result = json.loads((undisturbed / "result.json").read_text())
    assert result["weights_proved"] == 0
    assert result["weights_unsure"] == len(lines(undisturbed / "metrics.jsonl", "served"))


def test_a_run_of_a_real_model_proves_every_version_by_all_of_its_tensors(tmp_path: Path) -> None:
    run = tmp_path / "proved"
    rounded = ("engine.kind=transformers", "engine.dtype=bfloat16", "learner.lr=1e-6")
    with train(run, tmp_path / "proved.log", *rounded, "step.count=3") as job:
        assert job.wait() == 0, job.text
    steps = lines(run / "metrics.jsonl", "step")
    assert [(step["weights_proved"], step["weights_unsure"]) for step in steps] == [(1, 0)] * 3
    assert {(s["tensors_checked"], s["tensors_published"]) for s in steps} == {(35, 35)}
    served = lines(run / "metrics.jsonl", "served")
    assert all(one["proved"] for one in served)
    result = json.loads((run / "result.json").read_text())
    assert (result["weights_proved"], result["weights_unsure"]) == (len(served), 0)


EVERYTHING = [
    "learner.overlap=token",
    "learner.updates=2",
    "learner.epochs=2",
    "learner.reference=start",
    "loss.dapo.kl=0.01",
    "learner.importance=truncate",
    "learner.max_staleness=1",
    "budget.length_variance.top_up=fewest",
    "batch.quorum.size=3",
    "audit.every=3",
]


@pytest.mark.long
def test_streamed_logprobs_several_updates_and_a_version_of_staleness_go_together(
    tmp_path: Path,
) -> None:
    run = tmp_path / "everything"
    with train(run, tmp_path / "everything.log", *SIMULATED, *EVERYTHING) as job:
        assert job.wait() == 0, job.text
    result = json.loads((run / "result.json").read_text())
    assert sum(result["tokens"].values()) == result["tokens_reported_by_engines"] > 0
    assert 0 < result["logprob_hidden_share"] <= 1
    steps = lines(run / "metrics.jsonl", "step")
    assert [step["learner"]["updates"] for step in steps] == [4.0] * 6
    assert 0 < max(step["staleness_max"] for step in steps) <= 1
    # groups that were ready a step earlier, by running ahead, are not audited any more
    assert {number for number, step in enumerate(steps) if "audit" in step} <= {2, 5}
    assert sum(step["learner"]["ahead_s"] for step in steps) > 0
    trained = [prompt for _, prompt in trained_prompts(run)]
    assert len(set(trained)) == len(trained) >= 6 * 4


@pytest.mark.fault("a learner rank is killed", part="learner", by="process")
def test_a_killed_learner_ends_the_run_and_resume_skips_and_repeats_no_prompt(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Promise: the run ends with status 1, names who was killed and the command to resume by, and
    leaves no process; resumed, it trains on the same prompts as a run that nothing happened to.
    Bound: it ends within 60 s.
    """
    run = tmp_path / "killed"
    with train(run, tmp_path / "killed.log", *SIMULATED) as job:
        job.until(lambda: (run / "checkpoints" / "step-000002").exists() and steps_done(run) >= 3)
        job.child("learner.learner_rank").send_signal(signal.SIGKILL)
        assert job.wait(60) == 1
        assert "l0 ended (killed by SIGKILL)" in job.text
        assert f"darts train --resume {run}" in job.text
        assert not job.left()
    with Job(["train", "--resume", str(run)], tmp_path / "resumed.log") as job:
        assert job.wait() == 0, job.text
    assert json.loads((run / "result.json").read_text())["steps"] == 6
    assert trained_prompts(run) == trained_prompts(undisturbed)


@pytest.mark.long
@pytest.mark.fault("the stage alone is killed", part="stage", by="process")
def test_a_killed_stage_ends_the_run_and_resume_skips_and_repeats_no_prompt(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Promise: the run ends with status 1, says so with the command to resume by, and leaves
    neither process nor sockets nor weights in memory, nor the directories of reward workers;
    resumed, it trains on the same prompts as a run that nothing happened to.
    Bound: it ends within 30 s.
    """
    run = tmp_path / "killed"
    with train(run, tmp_path / "killed.log", *SIMULATED) as job:
        job.until(lambda: (run / "checkpoints" / "step-000002").exists() and steps_done(run) >= 3)
        sockets = Path((run / "address").read_text().strip())
        job.child("pipeline.stage").send_signal(signal.SIGKILL)
        assert job.wait(30) == 1
        assert "the stage ended (killed by SIGKILL)" in job.text
        assert f"darts train --resume {run}" in job.text
        assert not job.left()
        assert not sockets.exists()
        assert left_by({job.process.pid, *job.family}) == set()
    with Job(["train", "--resume", str(run)], tmp_path / "resumed.log") as job:
        assert job.wait() == 0, job.text
    assert json.loads((run / "result.json").read_text())["steps"] == 6
    assert trained_prompts(run) == trained_prompts(undisturbed)


@pytest.mark.fault("Ctrl-C in mid-step", part="people", by="process")
def test_ctrl_c_cuts_a_checkpoint_in_mid_step_and_resume_goes_on_from_it(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Promise: status 130, a checkpoint, and no process left; resumed, the run trains on the same
    prompts as one that nobody stopped.
    Bound: 10 s.
    """
    run = tmp_path / "stopped"
    with train(run, tmp_path / "stopped.log", *SIMULATED, "checkpoint.every=0") as job:
        job.until(lambda: steps_done(run) >= 2)
        job.process.send_signal(signal.SIGINT)
        assert job.wait(10) == 130, job.text
        assert not job.left()
    assert list((run / "checkpoints").glob("step-*"))
    with Job(["train", "--resume", str(run)], tmp_path / "resumed.log") as job:
        assert job.wait() == 0, job.text
    assert trained_prompts(run) == trained_prompts(undisturbed)


def test_torchrun_gives_roles_by_rank_with_two_learners_and_zero_1(tmp_path: Path) -> None:
    run = tmp_path / "torchrun"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3"]
    command += ["--master-port=29611", "-m", "launch.torchrun", "configs/quickstart.yaml"]
    command += ["--out", str(run), *QUICK, *SIMULATED]
    command += ["learner.ranks=2", "learner.zero=1", "step.count=2"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((run / "result.json").read_text())["steps"] == 2


@pytest.mark.fault("most rewards raise", part="rewards", by="process")
def test_a_reward_that_mostly_raises_stops_the_run_with_its_traceback(tmp_path: Path) -> None:
    """Promise: the run stops with status 1, with the words of the error and the setting that allows
    more.
    Bound: 120 s.
    """
    run = tmp_path / "raises"
    overrides = [o.replace(":length_reward", ":broken_reward") for o in SIMULATED]
    with train(run, tmp_path / "raises.log", *overrides) as job:
        assert job.wait(120) == 1
        assert "this reward is broken" in job.text
        assert "workers.fail_share" in job.text


@pytest.mark.long
def test_engine_and_learner_started_by_hand_join_a_stage_that_runs_alone(tmp_path: Path) -> None:
    run = tmp_path / "parts"
    with train(run, tmp_path / "stage.log", "--stage-only", *SIMULATED, "step.count=2") as stage:
        stage.until(lambda: (run / "address").exists())
        join = ["--join", str(run)]
        with (
            Job(["engine", *join, "--name", "mine"], tmp_path / "engine.log") as engine,
            Job(["learner", *join, "--port", "29633"], tmp_path / "learner.log") as learner,
        ):
            assert stage.wait() == 0, stage.text
            assert engine.wait(20) == 0, engine.text
            assert learner.wait(20) == 0, learner.text
    assert json.loads((run / "result.json").read_text())["steps"] == 2


@pytest.mark.fault("an engine is killed while a tool runs", part="engines", by="process")
def test_an_engine_killed_while_a_tool_runs_loses_no_turn_and_appended_tokens_are_not_trained(
    tmp_path: Path,
) -> None:
    """Promise: calls go on, later turns run on the engine that comes back, the accounts add up to
    what engines report, and what the tool appended is in none of them.
    Bound: the run ends with all its steps.
    """
    run = tmp_path / "tool"
    tool = (
        "environment.python.function=tests.launch.jobs.jobs:slow_tool",
        "workers.count=2",
        *(
            "learner.overlap=token",
            "learner.updates=2",
            "learner.turn_share=0.5",
            "learner.entropy_bonus=0.001",  # also members without an advantage are computed
            "step.count=3",
            "checkpoint.every=3",
        ),
    )
    with train(run, tmp_path / "tool.log", *SIMULATED, *tool) as job:
        job.until(lambda: steps_done(run) >= 1)
        job.child("engines.worker").send_signal(signal.SIGKILL)
        assert job.wait() == 0, job.text
        assert "engine e0 lost" in job.text
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 3
    assert sum(result["tokens"].values()) == result["tokens_reported_by_engines"]
    steps = lines(run / "metrics.jsonl", "step")
    assert all(step["tokens_appended"] >= 4 and step["turns"] > 0 for step in steps)
    assert all(0 < step["learner"]["sure_turns"] < 1 for step in steps), "learner.turn_share"
    trained = [
        member
        for group in lines(run / "decisions.jsonl", "group")
        if group["fate"] == "trained"
        for member in group["members"]
        if member[5]
    ]
    assert sum(member[2] for member in trained) == result["tokens"]["trained"]
    assert any(member[7:] == [3, 8] for member in trained), "nobody had all its turns"
    assert "turn_s" in lines(run / "metrics.jsonl", "timing")[-1]["percentiles"]
