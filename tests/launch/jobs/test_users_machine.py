"""A run on a machine that is not ours: its folder, its locale, its variables and its paths."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.jobs.jobs import QUICK, heed_ctrl_c, steps_done
from tests.paths import MODEL, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REWARD = """
import os

def score(sample):
    print("\u2192")
    assert os.environ["LOCAL_JUDGE_URL"] == "http://judge"
    return float(sample.tokens < 20)
"""


@pytest.mark.fault("files, locale and variables of the user's machine", part="people",
                   by="process")  # fmt: skip
def test_a_run_trains_whatever_lies_in_the_folder_and_stands_in_the_environment(
    tmp_path: Path,
) -> None:
    """Promise: with files named as darts' own packages in the current folder, a space in its path,
    a locale of ASCII and data whose name is none, a variable that begins like one of torchrun's,
    and VLLM_PORT as Kubernetes sets it, the run trains, rewards see the variable, and Ctrl-C prints
    a line that a shell reads.
    Bound: that of the run.
    """
    here = tmp_path / "my folder"
    for name in ("launch", "engines", "learner"):
        (here / name).mkdir(parents=True)
        (here / name / "__init__.py").write_text("raise RuntimeError('the user'+chr(39)+'s')")
    (here / "pipeline.py").write_text("raise RuntimeError('not the package')")
    (here / "judge_of_mine.py").write_text(REWARD)
    rows = [{"prompt": f"{n}+3=", "answer": str(n + 3), "note": "\u2192"} for n in range(2, 60)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (here / "d\u00e4ta.jsonl").write_text(text, encoding="utf-8")
    settings = [
        *("engine.kind=simulated", "data.train=d\u00e4ta.jsonl", "data.held_out=d\u00e4ta.jsonl"),
        *("reward.python.function=judge_of_mine:score", "workers.env=[LOCAL_JUDGE_URL]"),
        *("eval.every=1", "eval.samples=1", "data.chat=never", f"model={MODEL}"),
    ]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0", "LOCAL_JUDGE_URL": "http://judge",
        "VLLM_PORT": "tcp://10.1.2.3:8000",
    }  # fmt: skip
    words = ["train", str(ROOT / "configs" / "quickstart.yaml"), "--out", "run", *QUICK]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(
            [sys.executable, "-P", "-m", "launch.cli", *words, *settings, "step.count=100000"],
            cwd=here, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=heed_ctrl_c,  # noqa: PLW1509  one call, no locks
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while steps_done(here / "run") < 2 and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        job.send_signal(signal.SIGINT)
        status = job.wait(30)
    finally:
        job.kill()
    said = (tmp_path / "log").read_text(errors="replace")
    assert status == 130, said
    assert steps_done(here / "run") >= 2, said
    [line] = [line for line in said.splitlines() if "darts train --resume" in line]
    assert shlex.split(line)[-1] == str(here / "run")
    assert list((here / "run" / "samples").glob("step-*.jsonl"))
