"""Random faults in real runs: they are drawn from their seeds, done, and judged."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from scripts.faults.__main__ import failing_writes, outcomes_table
from scripts.faults.chain import Chain, Injection, Outcome
from scripts.faults.kinds import KINDS
from tests.paths import ROOT

SEEDS = (34, 35)
"""Of the two faults that the whole program does here."""


def test_an_injection_is_drawn_from_its_seed_and_every_kind_gets_its_turn() -> None:
    kinds = list(KINDS)
    drawn = [Injection.drawn(seed, kinds) for seed in range(2 * len(kinds))]
    assert drawn == [Injection.drawn(seed, kinds) for seed in range(2 * len(kinds))]
    assert set(Counter(one.kind for one in drawn).values()) == {2}
    assert {one.phase for one in drawn} == {"start", "training", "checkpoint"}
    assert all(one.phase in KINDS[one.kind].phases for one in drawn)


def test_writes_fail_below_the_directory_and_while_the_plan_is_there(tmp_path: Path) -> None:
    library, plan = failing_writes(tmp_path), tmp_path / "plan"
    if library is None:
        pytest.skip("no C compiler")
    (tmp_path / "full").mkdir()
    code = (
        "import os, sys\n"
        "for path in sys.argv[1:]:\n"
        "    file = os.open(path, os.O_CREAT | os.O_WRONLY)\n"
        "    for write in (lambda: os.write(file, b'x'), lambda: os.fsync(file)):\n"
        "        try:\n"
        "            write()\n"
        "            print('ok', end=' ')\n"
        "        except OSError as error:\n"
        "            print(error.errno, end=' ')\n"
    )
    environment = {**os.environ, "LD_PRELOAD": str(library), "DARTS_FAILING_WRITES": str(plan)}
    command = [sys.executable, "-c", code, str(tmp_path / "full" / "a"), str(tmp_path / "b")]

    def said() -> list[str]:
        return subprocess.check_output(command, env=environment, text=True).split()

    assert said() == ["ok"] * 4
    plan.write_text(f"{errno.EIO}\n{tmp_path / 'full'}\n")
    assert said() == [str(errno.EIO)] * 2 + ["ok"] * 2


def test_an_end_that_its_kind_does_not_allow_is_a_problem_and_keeps_the_folder(
    tmp_path: Path,
) -> None:
    fault = Injection(3, "SIGSTOP and SIGCONT to the stage", "training", 0, 0.0)
    settings = ["engine.kind=simulated", "group.size=0"]
    with subprocess.Popen(["sleep", "60"]) as bystander:
        with Chain(tmp_path, settings, None) as chain:
            [outcome] = chain.carry_out([fault])
        assert bystander.poll() is None, "a process that is none of the run's was killed"
        bystander.kill()
    assert "status 2, expected one of [0]:" in outcome.problems[0]
    assert "group.size" in outcome.problems[0]
    assert outcome.problems[-1] == f"its folder is kept: {tmp_path / 'run-1'}"
    assert (tmp_path / "run-1" / "life-1.log").exists()
    table = outcomes_table([outcome, Outcome(fault, then="went on to step 4")])
    assert table[2:] == [
        "| SIGSTOP and SIGCONT to the stage | 2 | 1 | 1 | 1 (seeds 3) |",
        "\n2 faults, 1 with a problem",
    ]


def test_an_orphan_of_a_run_is_seen(tmp_path: Path) -> None:
    """In a process of its own, which adopts orphans."""
    code = (
        "import os, subprocess, sys\n"
        "from pathlib import Path\n"
        "from scripts.faults.run import DisturbedRun, adopt_orphans\n"
        "adopt_orphans()\n"
        "with DisturbedRun(Path(sys.argv[1]), [], None) as run:\n"
        "    subprocess.run(['sh', '-c', 'sleep 60 & exit 0'], check=True)\n"
        "    [orphan] = run.running()\n"
        "    print(orphan.ppid() == os.getpid())\n"
        "print(orphan.is_running() and orphan.status() != 'zombie')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.check_output(command, env=environment, text=True).splitlines() == [
        "True",
        "False",
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.fault("two faults at random moments of one run", part="everything", by="process")
def test_a_run_survives_random_faults_with_nothing_lost(tmp_path: Path) -> None:
    """`make faults` does 200.

    Promise: the run goes on, or ends with the status that this fault is to give, without a process,
    a file in memory or in the temporary directory; it is resumed, and in the end its books balance
    and every prompt of its data was trained on once.
    Bound: that of the runs.
    """
    first, last = SEEDS
    command = [sys.executable, "-m", "scripts.faults", "--folder", str(tmp_path / "runs")]
    command += ["--seed", str(first), "--count", str(last - first + 1)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(SEEDS)} faults, 0 with a problem" in done.stdout
