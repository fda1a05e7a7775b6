"""How runs end that cannot go on, or are asked not to: by themselves, and with the reason."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.launch.jobs.jobs import SIMULATED, Job, lines, shared_memory, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def left_in_memory(job: Job) -> list[str]:
    return [n for n in shared_memory() if n.startswith(f"darts-{os.getuid()}-{job.process.pid}-")]


def parts(job: Job) -> int:
    """Stage, engine and learner that have been started."""
    job.look()
    count = 0
    for process in job.family.values():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            words = process.cmdline()
            count += "--config" in words or "--sockets" in words
    return count


@pytest.mark.fault("a second Ctrl-C", part="people", by="process")
def test_a_second_ctrl_c_waits_for_no_checkpoint(tmp_path: Path) -> None:
    """Promise: also while the run starts: status 130, no process, nothing in memory.
    Bound: 5 s after the second one.
    """
    with train(tmp_path / "run", tmp_path / "log", *SIMULATED) as job:
        job.until(lambda: parts(job) >= 3, 60)
        job.process.send_signal(signal.SIGINT)
        job.until(lambda: "again: stop at once" in job.text, 10)
        job.process.send_signal(signal.SIGINT)
        assert job.wait(5) == 130, job.text
        assert not job.left(0.0)
        assert not left_in_memory(job)


def steps_of(run: Path) -> int:
    return len(lines(run / "metrics.jsonl", "step"))


@pytest.mark.fault("SIGTERM to every process of a run at once", part="people", by="process")
def test_sigterm_to_all_writes_one_checkpoint(tmp_path: Path) -> None:
    """Promise: whoever gets it first, learner ranks stay for the checkpoint; status 130, no process
    and nothing in memory is left. Bound: `timeouts.stop_s` (10 s) and 5 s.
    """
    run = tmp_path / "run"
    settings = ("step.count=100000", "checkpoint.every=0", "engine.count=2")
    with train(run, tmp_path / "log", *SIMULATED, *settings) as job:
        job.until(lambda: steps_of(run) >= 3)
        learner = job.child("learner.learner_rank")
        for process in (learner, *(p for p in job.family.values() if p != learner)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        job.process.send_signal(signal.SIGTERM)
        assert job.wait(15) == 130, job.text
        assert list((run / "checkpoints").glob("step-*")), job.text
        assert not job.left(0.0)
        assert not left_in_memory(job)


@pytest.mark.fault("SIGTERM to one process of a run", part="people", by="process")
@pytest.mark.parametrize(
    "part", ["pipeline.stage", pytest.param("learner.learner_rank", marks=pytest.mark.long)]
)
def test_sigterm_to_one_part_ends_the_run_with_a_checkpoint(tmp_path: Path, part: str) -> None:
    """Promise: a checkpoint, a status that is not 0, and a line that names who was asked to end.
    Bound: 20 s.
    """
    run = tmp_path / "run"
    settings = ("step.count=100000", "checkpoint.every=0")
    with train(run, tmp_path / "log", *SIMULATED, *settings) as job:
        job.until(lambda: steps_of(run) >= 3)
        job.child(part).terminate()
        assert job.wait(20) == 1, job.text
        assert "was asked to end: SIGTERM" in job.text
        assert list((run / "checkpoints").glob("step-*")), job.text
        assert not job.left()


@pytest.mark.fault("a third Ctrl-C", part="people", by="process")
def test_a_third_ctrl_c_waits_for_nobody(tmp_path: Path) -> None:
    """Promise: who does not leave when asked (here the stage, which is stopped) is killed without
    the second's grace; status 130, no process, nothing in memory.
    Bound: 5 s after the third one.
    """
    with train(tmp_path / "run", tmp_path / "log", *SIMULATED) as job:
        job.until(lambda: parts(job) >= 3, 60)
        job.child("pipeline.stage").suspend()
        for _ in range(3):
            job.process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert job.wait(5) == 130, job.text
        assert not job.left(0.0)
        assert not left_in_memory(job)


@pytest.mark.fault(
    "a learner rank raises in the backward pass and hangs in its exit", part="learner", by="process"
)
def test_a_learner_that_raises_does_not_wait_at_its_exit(tmp_path: Path) -> None:
    """Promise: the run ends with status 1 and the words of the error, although a thread of the rank
    would have kept it for ten minutes.
    Bound: 180 s from the start.
    """
    loss = "loss=tests.launch.jobs.losses:Raising"
    with train(tmp_path / "run", tmp_path / "log", *SIMULATED, loss) as job:
        assert job.wait(180) == 1
        assert "l0 ended (exit 1)" in job.text
        assert "ValueError: this loss is broken" in job.text
        assert not job.left()


@pytest.mark.fault("a collective hangs", part="learner", by="process")
def test_ranks_that_wait_for_each_other_for_ever_are_found_stuck(tmp_path: Path) -> None:
    """Promise: one rank never enters the step's collective and another waits in it, while the
    heartbeats of both go on: they are found stuck, and the run ends with status 1 and the line that
    says what has stood still.
    Bound: the step's limit (`STEP_LIMIT_S`, 300 s, here 4 s), and 180 s from the start.
    """
    settings = [
        "loss=tests.launch.jobs.losses:Hanging",
        "learner.ranks=2",
        "learner.updates=2",
    ]
    with train(tmp_path / "run", tmp_path / "log", *SIMULATED, *settings) as job:
        assert job.wait(180) == 1
        assert "'optimizer step' has stood still for " in job.text
        assert not job.left()


@pytest.mark.fault("an engine that starts very late", part="engines", by="process")
def test_who_never_joins_is_named(tmp_path: Path) -> None:
    """Promise: it is waited for, and then the run ends with status 1 and names who is missing.
    (Once a run trains, an engine may come whenever it likes.)
    Bound: `timeouts.join_s` (here 1 s) and 60 s.
    """
    run = tmp_path / "run"
    with train(run, tmp_path / "log", "--stage-only", *SIMULATED, "timeouts.join_s=1") as job:
        assert job.wait(61) == 1
        assert "missing: learner rank 0, an engine that serves the weights" in job.text


@pytest.mark.fault("no room for metrics, decisions or logs", part="disk", by="process")
def test_a_run_whose_records_and_logs_find_no_room_does_all_its_steps(tmp_path: Path) -> None:
    """Promise: the disk is full for both records and for the logs of stage and engine, from the
    first line to the last: the terminal says so, and the run trains to its end, with a result.
    Bound: the run itself.
    """
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    full = [run / "metrics.jsonl", run / "decisions.jsonl", run / "logs" / "stage.log"]
    for path in (*full, run / "logs" / "e0.log"):
        path.symlink_to("/dev/full")
    with train(run, tmp_path / "log", *SIMULATED, "step.count=2") as job:
        assert job.wait(180) == 0, job.text
        for path in full[:2]:
            told = f"{path}: No space left on device; its lines wait in memory for room"
            assert job.text.count(path.name) == job.text.count(told.rpartition("/")[2]) == 1
    assert json.loads((run / "result.json").read_text())["steps"] == 2
    assert list((run / "checkpoints").glob("step-*"))
