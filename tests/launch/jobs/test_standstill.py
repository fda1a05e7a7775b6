"""One long run whose processes are stopped and go on, are late, and are asked to leave.

All the while the clock on the wall jumps, in every process of it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.launch.jobs.jobs import (
    SIMULATED,
    Job,
    lines,
    shared_memory,
    steps_done,
    train,
    trained_prompts,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LOST_S = 3.0
JUMP_S = 86_400.0
JUMPING = f"""
import time
_wall, _steady = time.time, time.monotonic
time.time = lambda: _wall() + {JUMP_S} * (int(_steady()) % 3 - 1)
"""
"""A `sitecustomize` with which every second is a day before, at, or after the one that it is."""


class Going:
    """The run, and what tests ask of it."""

    def __init__(self, run: Path, job: Job) -> None:
        self.run, self.job = run, job

    def process(self, *words: str) -> psutil.Process:
        self.job.look()
        family = [p for p in self.job.family.values() if p.is_running()]
        [found] = [p for p in family if all(word in p.cmdline() for word in words)]
        return found

    @property
    def said(self) -> str:
        return (self.run / "logs" / "stage.log").read_text()

    @property
    def live(self) -> dict[str, Any]:
        return json.loads((self.run / "live.json").read_bytes())

    def serves(self, engine: str) -> bool:
        return any(e["name"] == engine and e["running"] for e in self.live["engines"])

    def more_steps(self, count: int = 2) -> None:
        done = steps_done(self.run)
        self.job.until(lambda: steps_done(self.run) >= done + count, 60)


@pytest.fixture(scope="module")
def going(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Going]:
    folder = tmp_path_factory.mktemp("standstill")
    (folder / "sitecustomize.py").write_text(JUMPING)
    run = folder / "run"
    settings = [*SIMULATED, "engine.count=2", "step.count=2000", "step.prompts=8"]
    settings += [f"timeouts.heartbeat_s={LOST_S}", "timeouts.log_wait_s=2", "checkpoint.every=0"]
    with train(run, folder / "job.log", *settings, path=folder) as job:
        job.until(lambda: steps_done(run) >= 1)
        yield Going(run, job)


@pytest.mark.fault("an engine is stopped (SIGSTOP)", part="engines", by="process")
def test_a_stopped_engine_is_killed_and_replaced_and_its_work_goes_on_elsewhere(
    going: Going,
) -> None:
    """Promise: it is found silent, its trajectories go on at the other one, and a launcher kills it
    and starts another.
    Bound: `timeouts.heartbeat_s` (here 3 s) and 15 s.
    """
    stopped = going.process("engines.worker", "e1")
    stopped.suspend()
    going.job.until(lambda: "e1 lost: silent for" in going.said, LOST_S + 15)
    going.job.until(lambda: not stopped.is_running() or stopped.status() == "zombie", 10)
    going.more_steps()
    going.job.until(lambda: "e1 joined, epoch 1" in going.said, 60)
    going.job.until(lambda: going.serves("e1"), 60)
    assert "e1 ended (killed by SIGKILL); restarting it" in going.job.text


@pytest.mark.fault("an engine is stopped (SIGSTOP) and goes on", part="engines", by="process")
def test_a_thawed_engine_is_not_believed_ends_and_may_join_anew(
    going: Going, tmp_path: Path
) -> None:
    """Promise: what it still sends is refused and counted, it ends with the reason, and joins anew
    under the same name; the run has gone on without it.
    Bound: it is lost after `timeouts.heartbeat_s` (here 3 s) and 15 s, and ends within 15 s of
    going on.
    """
    join = ["engine", "--join", str(going.run), "--name", "guest"]
    with Job(join, tmp_path / "guest.log") as guest:
        going.job.until(lambda: going.serves("guest"), 60)
        guest.process.send_signal(signal.SIGSTOP)
        refused = going.live["refused"]["epoch"]
        going.job.until(lambda: "guest lost: silent for" in going.said, LOST_S + 15)
        going.more_steps()
        guest.process.send_signal(signal.SIGCONT)
        assert guest.wait(15) == 1
        assert "guest: stopping: silent for" in guest.text
        going.job.until(lambda: going.live["refused"]["epoch"] > refused, 10)
    with Job(join, tmp_path / "again.log") as guest:
        going.job.until(lambda: "guest joined, epoch 1" in going.said, 60)
        going.job.until(lambda: going.serves("guest"), 60)
        guest.process.send_signal(signal.SIGTERM)
        assert guest.wait(15) == 0
        # The stage has heard of it before the next test stops the stage.
        going.job.until(lambda: "guest" not in {e["name"] for e in going.live["engines"]}, 20)


@pytest.mark.fault("the stage is stopped (SIGSTOP) and goes on", part="stage", by="process")
def test_a_stopped_stage_blames_nobody_and_goes_on(going: Going) -> None:
    """Promise: the launcher says that it is silent; when it goes on it says how late it was, counts
    nobody as lost for it, and trains on.
    Bound: told after `timeouts.log_wait_s` (here 2 s); stopped for longer than
    `timeouts.heartbeat_s` (3 s).
    """
    before = going.said
    stage = going.process("pipeline.stage")
    stage.suspend()
    time.sleep(LOST_S + 1.5)
    stage.resume()
    going.more_steps()
    said = going.said[len(before) :]
    assert "the stage itself was late by" in said
    assert " lost: " not in said
    assert "the stage has been silent for" in going.job.text


@pytest.mark.fault("a stage that reads more slowly than engines write", part="stage", by="process")
def test_a_slow_stage_makes_no_engine_grow_and_loses_no_frame(going: Going) -> None:
    """Promise: what an engine holds for it is bounded by its slots: its memory grows by less than
    16 MiB, and everything that it sent arrives.
    Bound: the stage runs for a tenth of 5 s.
    """
    before, engine = going.said, going.process("engines.worker", "e0")
    grown, stage = -engine.memory_info().rss, going.process("pipeline.stage")
    for _ in range(10):
        stage.suspend()
        time.sleep(0.45)
        stage.resume()
        time.sleep(0.05)
    grown += engine.memory_info().rss
    going.more_steps()
    assert grown < 16 << 20
    assert " lost: " not in going.said[len(before) :]


@pytest.mark.fault("the clock on the wall jumps", part="everything", by="process")
def test_a_clock_that_jumps_moves_no_limit(going: Going) -> None:
    """Promise: in every process it jumps by a day each second, and the run goes on: limits, waits
    and figures are by the monotonic clock.
    Bound: three steps, after all that has happened here before.
    """
    going.more_steps(3)
    steps = lines(going.run / "metrics.jsonl", "step")
    times = [step["time"] for step in steps]
    assert max(times) - min(times) >= JUMP_S, "it jumps"
    assert all(0 < step["seconds"] < 60 for step in steps)
    lost = {line.split(" lost: ")[0].split()[-1] for line in going.said.splitlines()
            if " lost: " in line}  # fmt: skip
    assert lost <= {"e1", "guest"}


@pytest.mark.fault("SIGTERM to `darts train`", part="people", by="process")
def test_sigterm_is_the_first_ctrl_c_and_nothing_is_trained_on_twice(going: Going) -> None:
    """Promise: a checkpoint, status 130, no process, and nothing in memory or in the directory of
    sockets; after all that has happened to the run every prompt was trained on once.
    Bound: `timeouts.stop_s` (10 s).
    """
    sockets = Path((going.run / "address").read_text().strip())
    going.job.look()
    going.job.process.send_signal(signal.SIGTERM)
    assert going.job.wait(10) == 130, going.job.text
    assert not going.job.left()
    assert list((going.run / "checkpoints").glob("step-*"))
    assert not sockets.exists()
    assert not [n for n in shared_memory() if f"darts-{os.getuid()}-{going.job.process.pid}-" in n]
    trained = trained_prompts(going.run)
    assert max(Counter(prompt for _, prompt in trained).values()) == 1
