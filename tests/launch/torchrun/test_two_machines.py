"""A job over two machines (network namespaces with a cable between them), one torchrun on each."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import store
from scripts.bench import recovery
from scripts.bench.namespaces import ADDRESSES, Machines, Started, two_machines, why_not
from tests.launch.jobs.jobs import QUICK, SIMULATED, lines, shared_memory, train, trained_prompts
from tests.launch.jobs.kill_often import (
    SETTINGS,
    AllTogether,
    Truth,
    differences,
    groups_of,
    weights_of,
)
from tests.launch.jobs.listening import listening

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = ["nodes.learners=spread", "learner.ranks=2", "learner.zero=1", "engine.count=2"]
"""Two ranks a machine: l0 e0 and l1 e1."""
PORT = 24_000  # nodes.port
MINUTES = pytest.mark.skipif(
    "DARTS_MULTINODE" not in os.environ, reason="minutes: make test-multinode"
)


@pytest.fixture
def machines() -> Any:
    if reason := why_not():
        pytest.skip(reason)
    with two_machines() as both:
        yield both


def until(jobs: list[Started], what: Callable[[], bool], limit_s: float = 240.0) -> None:
    """Wait for something while the jobs go on."""
    deadline = time.monotonic() + limit_s
    while not what():
        for job in jobs:
            job.running_processes()
            assert job.process.poll() is None, job.text
        assert time.monotonic() < deadline, jobs[0].text
        time.sleep(0.2)


def start(
    machines: Machines,
    machine: int,
    run: Path,
    overrides: list[str],
    ranks: int = 2,
    restarts: int = 0,
    logs: Path | None = None,
) -> Started:
    arguments = ["configs/quickstart.yaml", "--out", str(run), *QUICK, *overrides]
    command = machines.torchrun(machine, ranks, arguments, restarts)
    log = (logs or run.parent) / f"{run.name}-machine{machine}.log"
    return Started(command, log)


def check_books(run: Path, steps: int, prompts: int) -> None:
    """Every token in one account, every prompt trained on once."""
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == steps
    assert sum(result["tokens"].values()) == result["tokens_reported_by_engines"] > 0
    trained = trained_prompts(run)
    assert len(trained) == steps * prompts
    assert max(Counter(prompt for _, prompt in trained).values()) == 1


def check_proofs(run: Path, steps: int, engines: set[str]) -> dict[str, set[int]]:
    """Every version that was sampled with is proved. Returns by engine what it has proved: one that
    came late, or was slow to load, has left out some."""
    proved: dict[str, set[int]] = {}
    for line in lines(run / "metrics.jsonl", "served"):
        assert line["gap"] < 1e-3
        proved.setdefault(line["engine"], set()).add(line["version"])
    assert proved.keys() == engines
    assert set().union(*proved.values()) >= set(range(steps))  # nobody samples with the last one
    return proved


def check_listeners(job: Started, address: str) -> None:
    """Every part of a machine listens at its loopback and at the address of its cable, and nowhere
    else; torchrun's own rendezvous is its own."""
    parts = [p for p in job.running_processes() if "torch.distributed.run" not in p.cmdline()]
    found = listening(part.pid for part in parts)
    assert found
    wide = {place for place in found if not place[0].startswith("127.") and place[0] != address}
    assert not wide, wide


_TRY = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def comes_in(place):
    try:
        socket.create_connection(tuple(place), timeout=2).close()
    except OSError:
        return ""
    return place[1]
with ThreadPoolExecutor(50) as pool:
    print(*pool.map(comes_in, json.loads(sys.argv[1])))
"""


def check_who_may_connect(machines: Machines, jobs: list[Started]) -> None:
    """Of all ports at which the parts of both machines listen, the other machine reaches the
    stage's three, where a key is asked for, and the store that rank 0 keeps for torchrun. So once
    the learner ranks have met nobody connects to gloo or to their rendezvous."""
    tried, reached, store = 0, set[int](), set[int]()
    for machine, job in enumerate(jobs):
        parts = [p for p in job.running_processes() if "torch.distributed.run" not in p.cmdline()]
        first = {part.pid for part in parts if "launch.torchrun" in part.cmdline()}
        found = listening(part.pid for part in parts)
        store |= {port for _, port, pid in found if pid in first}
        places = sorted({(host, port) for host, port, _ in found})
        tried += len(places)
        asked = [sys.executable, "-c", _TRY, json.dumps(places)]
        done = subprocess.run(
            machines.command_on(1 - machine, asked), capture_output=True, text=True, check=True
        )
        reached |= {int(port) for port in done.stdout.split()}
    stage = {PORT, PORT + 1, PORT + 2}
    assert stage <= reached
    assert reached - stage == store
    assert len(store) == 1
    assert tried > len(reached), "nobody listened for gloo"


def fetched(log: Path) -> list[int]:
    """Versions that were fetched from the other machine."""
    return [int(version) for version in re.findall(r"version (\d+): fetched", log.read_text())]


def check_secrets(run: Path, seen: str) -> None:
    """The guests' key was in a file for its owner alone, and no secret is anywhere else."""
    secret = json.loads(seen)["keys"]["secret"]
    assert not (run / "join.key").exists()
    for path in run.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


@MINUTES
@pytest.mark.fault("strangers try every port of a job over two machines", part="peers",
                   by="process")  # fmt: skip
def test_two_machines_train_together_and_a_guest_joins_by_its_key_file(
    machines: Machines, tmp_path: Path
) -> None:
    """Promise: a stranger connects to the stage's ports alone, which ask for a key, and to
    torchrun's store; a guest joins by the key file. Bound: once the learner ranks have met.
    """
    run, key = tmp_path / "two", tmp_path / "two" / "join.key"
    steps = 24
    with ExitStack() as stack:

        def started(machine: int) -> Started:
            overrides = [*SMALL, *SIMULATED, f"step.count={steps}", f"nodes.port={PORT}"]
            return stack.enter_context(start(machines, machine, run, overrides))

        jobs = [started(0), started(1)]
        until(jobs, key.exists)
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        seen = key.read_text()
        guest = [sys.executable, "-m", "launch.cli", "engine", "--join", str(key)]
        command = machines.command_on(1, [*guest, "--name", "guest"])
        joined = Started(command, tmp_path / "guest-supervisor.log", tmp_path)
        jobs.append(stack.enter_context(joined))
        until(jobs, lambda: len(lines(run / "metrics.jsonl", "step")) >= 1)
        check_who_may_connect(machines, jobs[:2])
        for job in jobs:
            assert job.wait(240) == 0, job.text
        pids = {job.process.pid for job in jobs}
    check_books(run, steps, 4)
    proved = check_proofs(run, steps, {"e0", "e1", "guest"})
    logs = run / "logs"
    assert set(fetched(logs / "node1" / "e1.log")) >= proved["e1"]
    assert fetched(tmp_path / "guest.log")
    assert not fetched(logs / "e0.log"), "on the learner's machine weights are files"
    check_secrets(run, seen)
    assert not {name for name in shared_memory() for pid in pids if f"-{pid}-" in name}


ORDERED = [
    *SETTINGS,
    f"batch={AllTogether.__module__}:{AllTogether.__name__}",
    "learner.ranks=2",
    "learner.zero=1",
    "engine.count=2",
]
"""Two learner ranks whose every sum has one order."""


@MINUTES
@pytest.mark.fault(
    "a learner rank dies on a machine without the run's folder", part="network", by="process"
)
def test_machines_that_share_no_files_lose_nothing_and_train_as_one_machine_does(
    tmp_path: Path,
) -> None:
    """The second machine has another directory under the path of `--out`.

    Promise: its ranks' parts are in every checkpoint, and come back from there when all ranks are
    restarted; weights and optimizers end equal to the bit to those of one machine that nobody
    disturbed.
    Bound: the job ends within 240 s.
    """
    if reason := why_not():
        pytest.skip(reason)
    with train(tmp_path / "one", tmp_path / "one.log", *ORDERED) as job:
        assert job.wait() == 0, job.text
    weights, optimizer = weights_of(store.peek_newest(tmp_path / "one" / "checkpoints"))
    truth = Truth(groups_of(tmp_path / "one"), weights, optimizer, 0.0, 0.0)
    first, second = tmp_path / "runs", tmp_path / "other"
    first.mkdir()
    second.mkdir()
    run = first / "two"
    with two_machines({first: second}) as machines, ExitStack() as stack:
        overrides = [*ORDERED, "nodes.learners=spread"]
        jobs = [
            stack.enter_context(start(machines, machine, run, overrides, restarts=1, logs=tmp_path))
            for machine in (0, 1)
        ]
        until(jobs, lambda: len(store.committed(run / "checkpoints")) >= 2)
        for machine, job in enumerate(jobs):
            check_listeners(job, ADDRESSES[machine])
        jobs[1].part("learner.learner_rank").kill()
        for job in jobs:
            assert job.wait(240) == 0, job.text
    check_books(run, 6, 4)
    assert differences(run, truth) == []
    assert int((run / "incarnation").read_text()) == 2
    kept = sorted(path.relative_to(second / "two") for path in (second / "two").rglob("*"))
    assert [str(path) for path in kept] == [
        *("elsewhere", "logs", "logs/node1", "logs/node1/e1.log", "logs/node1/l1.log", "parts")
    ]


SMALLER = recovery.Scale(steps=16, before=6, cut_s=5.0)


@MINUTES
@pytest.mark.fault("the link between two machines is cut and heals", part="network", by="process")
def test_a_cut_link_loses_an_engine_for_its_time_and_no_prompt(
    machines: Machines, tmp_path: Path
) -> None:
    """Promise: the engine behind it is lost, its work goes on elsewhere, and it joins anew when the
    link heals; the learner ranks on both sides wait for each other; every prompt is trained on
    once, and the accounts add up.
    Bound: cut for 5 s; noticed within 20 s, another step within 60 s of its healing.
    """
    [cut, *_] = recovery.FAULTS
    row = recovery.carry_out(cut, machines, tmp_path, SMALLER)
    assert not row.restarted
    assert row.detect_s < 20
    assert row.recover_s < 60
    assert "e1 joined, epoch 1" in (tmp_path / "run" / "logs" / "stage.log").read_text()


@MINUTES
@pytest.mark.fault("a machine's torchrun is killed and started again", part="network", by="process")
def test_a_machine_that_is_gone_and_comes_back_goes_on_from_the_checkpoint(
    machines: Machines, tmp_path: Path
) -> None:
    """Promise: its ranks end with it, the other machine starts its own again, and when the machine
    is back the run goes on from the newest checkpoint; every prompt is trained on once, and the
    accounts add up.
    Bound: noticed within 60 s, another step within 120 s of its start.
    """
    *_, killed = recovery.FAULTS
    row = recovery.carry_out(killed, machines, tmp_path, SMALLER)
    assert row.restarted
    assert row.detect_s < 60
    assert row.recover_s < 120


@MINUTES
def test_real_vllm_and_deepspeed_learn_the_quickstart_task_on_two_machines(
    machines: Machines, tmp_path: Path
) -> None:
    run = tmp_path / "real"
    shape = ["nodes.learners=spread", "learner.ranks=3", "engine.count=2", "timeouts.join_s=900"]
    with ExitStack() as stack:
        # l0 l1 e0 here, l2 e1 there: machines may have different numbers of ranks
        jobs = [
            stack.enter_context(start(machines, m, run, [*shape, "step.count=4"], ranks))
            for m, ranks in ((0, 3), (1, 2))
        ]
        for job in jobs:
            assert job.wait(800) == 0, job.text
    check_books(run, 4, 4)
    proved = check_proofs(run, 4, {"e0", "e1"})
    assert set(fetched(run / "logs" / "node1" / "e1.log")) >= proved["e1"]
    rewards = [step["reward"] for step in lines(run / "metrics.jsonl", "step")]
    assert min(rewards) > 0.2, "the engines do not have the model that solves half of the task"
