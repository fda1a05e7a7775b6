"""Somebody stops to answer and nobody dies: whole jobs in which the run itself acts."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from tests.launch.jobs.hanging_engine import MARK
from tests.launch.jobs.jobs import SIMULATED, lines, train, trained_prompts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.fault(
    "an engine's loop hangs while its heartbeats go on", part="engines", by="process"
)
def test_an_engine_whose_loop_hangs_is_killed_and_its_work_goes_on_elsewhere(
    tmp_path: Path,
) -> None:
    """Promise: it is killed, told of with what it did not send, and started again; what it was
    sampling goes on at the other engine, each prompt is trained on once, and the accounts add up.
    Bound: `timeouts.sampling_s` (here 4 s) until it is found; 200 s for the whole run.
    """
    run = tmp_path / "hangs"
    shape = ["engine.count=2", "step.count=2", "timeouts.sampling_s=4", "learner.overlap=off"]
    module = "tests.launch.jobs.hanging_engine"
    with train(run, tmp_path / "log", *SIMULATED, *shape, module=module) as job:
        assert job.wait(200) == 0, job.text
    assert not psutil.pid_exists(int((run / MARK).read_text()))
    [lost] = [w["text"] for w in lines(run / "metrics.jsonl", "warning") if "lost" in w["text"]]
    assert lost.startswith("engine e0 lost (it has sent nothing of ")
    assert "e0 ended (killed by SIGKILL)" in job.text
    assert json.loads((run / "live.json").read_text())["acted"] == {"engine": 1}
    prompts = [prompt for _, prompt in trained_prompts(run)]
    assert len(prompts) == len(set(prompts)) == 2 * 4
    result = json.loads((run / "result.json").read_text())
    assert sum(result["tokens"].values()) == result["tokens_reported_by_engines"] > 0
