"""Jobs whose output goes nowhere: they train on, and end as they are asked to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.jobs.jobs import QUICK, SIMULATED, heed_ctrl_c, steps_done
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def started(run: Path, out: int, *settings: str) -> subprocess.Popen[bytes]:
    words = ["train", "configs/quickstart.yaml", "--out", str(run), *QUICK, *SIMULATED, *settings]
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *words], cwd=ROOT, stdout=out, stderr=out,
        stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=heed_ctrl_c,  # noqa: PLW1509  one call, no locks
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.fault("a run's output goes to a disk that is full", part="disk", by="process")
def test_a_run_whose_output_goes_to_a_full_disk_is_done(tmp_path: Path) -> None:
    """Promise: it does all its steps and ends with status 0; logs/launcher.log tells of the loss.
    Bound: that of the run.
    """
    full = os.open("/dev/full", os.O_WRONLY)
    with started(tmp_path / "run", full, "step.count=2") as job:
        assert job.wait(200) == 0
    os.close(full)
    assert (tmp_path / "run" / "result.json").exists()
    assert "is lost: No space left" in (tmp_path / "run" / "logs" / "launcher.log").read_text()


@pytest.mark.fault("Ctrl-C while nobody reads a run's output, or its reader has left",
                   part="people", by="process")  # fmt: skip
@pytest.mark.parametrize("reader_stays", [pytest.param(True, marks=pytest.mark.long), False])
def test_ctrl_c_is_heard_whoever_reads(tmp_path: Path, reader_stays: bool) -> None:
    """Promise: a checkpoint and status 130, as with a reader. Bound: `timeouts.stop_s` (10 s)
    and 2 s for what is still to be shown.
    """
    run, (reader, writer) = tmp_path / "run", os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 512)
    os.set_blocking(writer, True)
    with started(run, writer, "step.count=100000", "checkpoint.every=0") as job:
        os.close(writer)
        if not reader_stays:
            os.close(reader)
        while steps_done(run) < 2 and job.poll() is None:
            time.sleep(0.1)
        job.send_signal(signal.SIGINT)
        try:
            assert job.wait(15) == 130
        finally:
            job.kill()
    if reader_stays:
        os.close(reader)
    assert list((run / "checkpoints").glob("step-*"))
