"""Who may connect to a run on one machine: nobody beyond the loopback; no store is open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.jobs.jobs import SIMULATED, lines, train
from tests.launch.jobs.listening import listening

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


_ASK = """
import sys
from datetime import timedelta
from torch.distributed import TCPStore
TCPStore(sys.argv[1], int(sys.argv[2]), is_master=False, wait_for_workers=False,
         timeout=timedelta(seconds=2)).num_keys()
"""


def answers_as_a_store(host: str, port: int) -> bool:
    """Asks as torch does, in a process of its own: it waits for ever for some that say nothing."""
    asked = [sys.executable, "-c", _ASK, host, str(port)]
    try:
        return subprocess.run(asked, capture_output=True, timeout=12).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@pytest.mark.fault("another user connects to the ports of a run on one machine", part="peers",
                   by="process")  # fmt: skip
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_run_on_one_machine_listens_on_the_loopback_alone_and_has_no_open_store(
    tmp_path: Path, ranks: int
) -> None:
    """Promise: with one learner rank and with two, no process listens at any other address, and
    none answers as torch's store does. Bound: while it trains.
    """
    run = tmp_path / "run"
    settings = ("step.count=100000", "checkpoint.every=0", f"learner.ranks={ranks}")
    with train(run, tmp_path / "log", *SIMULATED, *settings) as job:
        job.until(lambda: len(lines(run / "metrics.jsonl", "step")) >= 1)
        job.look()
        pids = [process.pid for process in job.family.values() if process.is_running()]
        found = listening([*pids, job.process.pid])
        assert all(host.startswith("127.") for host, _, _ in found), found
        for host, port, _ in found:
            assert not answers_as_a_store(host, port), (host, port)
