"""One learner rank runs out of memory at ZeRO 3, where the others wait for it in a collective."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.load import load
from tests.launch.jobs.jobs import QUICK, ROOT, SIMULATED, lines, train, trained_prompts
from tests.launch.jobs.losses import FITS, SMALL_SINCE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = [
    *SIMULATED,
    *("learner.ranks=2", "learner.zero=3", "step.count=4"),
    "loss=tests.launch.jobs.losses:Exhausting",
]
SETTING = 4096
"""`learner.tokens_per_micro_batch` of the quickstart."""


def check_smaller(run: Path) -> int:
    """The run went on to its end with a lower limit, on all ranks alike; returns how often it was
    lowered."""
    kept = json.loads((run / "micro-batches.json").read_text())
    assert kept["setting"] == load(run / "config.yaml").learner.tokens_per_micro_batch == SETTING
    steps = lines(run / "metrics.jsonl", "step")
    assert [step["step"] for step in steps] == [0, 1, 2, 3]
    used = [step["learner"]["micro_batch_tokens"] for step in steps]
    assert used == [SETTING, SETTING, kept["tokens"], kept["tokens"]]
    assert FITS / 4 < kept["tokens"] < 2 * FITS
    [told] = [w for w in lines(run / "metrics.jsonl", "warning") if "memory ran out" in w["text"]]
    assert f"micro-batches of {kept['tokens']} tokens, not {SETTING}" in told["text"]
    limits = [
        re.findall(r"micro-batches of (\d+) tokens: memory", (run / "logs" / name).read_text())
        for name in ("l0.log", "l1.log")
    ]
    assert limits[0] == limits[1], "a rank has another limit"
    assert limits[0][-1] == str(kept["tokens"])
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 4
    assert sum(result["tokens"].values()) == result["tokens_reported_by_engines"] > 0
    return len(limits[0])


@pytest.mark.long
@pytest.mark.fault(
    "a rank runs out of memory where all ranks run together (ZeRO 3)", part="learner", by="process"
)
def test_out_of_memory_at_zero_3_starts_all_ranks_again_with_smaller_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: all ranks start again from the newest checkpoint, by themselves, with micro-batches
    of at most half the size; this repeats until they fit, a warning and `micro_batch_tokens` of
    each step say so, the run trains to its end, and a resume keeps the limit.
    Bound: 300 s for the whole run, however often it starts again.
    """
    run = tmp_path / "small"
    monkeypatch.setenv(SMALL_SINCE, str(run / "checkpoints" / "step-000002"))
    with train(run, tmp_path / "small.log", *SMALL) as job:
        assert job.wait(300) == 0, job.text
        assert not job.left()
    times = check_smaller(run)
    assert times >= 1
    assert job.text.count("starting again from step-000002, with smaller micro-batches") == times
    assert "learner rank 1 lost: the test's; in a pass of all ranks" in job.text
    prompts = [prompt for _, prompt in trained_prompts(run)]
    assert len(prompts) == len(set(prompts)) == 4 * 4


@pytest.mark.long
@pytest.mark.fault("out of memory at ZeRO 3, under torchrun", part="learner", by="process")
def test_torchrun_starts_again_with_smaller_micro_batches_on_all_ranks(tmp_path: Path) -> None:
    """Promise: rank 0 hands the lower limit to all ranks when torchrun starts them again, though
    each of them was given the configuration with the old one.
    Bound: a restart for each halving counts against `--max-restarts`.
    """
    run = tmp_path / "torchrun"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment[SMALL_SINCE] = str(run / "checkpoints" / "step-000002")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3"]
    command += ["--master-port=29617", "--max-restarts=4", "-m", "launch.torchrun"]
    command += ["configs/quickstart.yaml", "--out", str(run), *QUICK, *SMALL]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert check_smaller(run) >= 1
