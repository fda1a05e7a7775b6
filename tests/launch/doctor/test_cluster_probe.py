"""`darts doctor --cluster`: what differs between machines, who reaches whom, would a run start."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.doctor.cluster_probe import (
    Listeners,
    Participant,
    ProbeError,
    facts_of,
    probe_cluster,
    probe_port,
)
from launch.doctor.cluster_report import (
    ANY_PORT,
    STAGE_PORTS,
    MachineFacts,
    Probe,
    cluster_notes,
    cluster_problems,
    cluster_table,
)
from launch.launcher.ports import LOOPBACK, free_port
from launch.torchrun.rendezvous import SharedSecret
from pipeline.config.load import load
from scripts.bench.namespaces import Machines, Started, two_machines, why_not

CONFIG = Path("configs/quickstart.yaml")
GIB = 2**30
FIRST = MachineFacts(
    node=0,
    host="a",
    address="10.0.0.1",
    ranks=2,
    versions={"python": "3.11.7", "torch": "2.13.0", "vllm": "0.32.0", "darts": "abc"},
    config="c" * 16,
    model="m" * 16,
    model_bytes=GIB,
    weights_bytes=GIB,
    shm_free=8 * GIB,
    disk_free=80 * GIB,
    ports={what: 40000 + n for n, what in enumerate(STAGE_PORTS)} | {ANY_PORT: 50000},
)
SECOND = msgspec.structs.replace(
    FIRST, node=1, host="b", address="10.0.0.2", ports={ANY_PORT: 50001}
)
PROBES = [
    *(Probe(source=1, target=0, what=w, port=p, trip_s=2e-4) for w, p in FIRST.ports.items()),
    Probe(source=0, target=1, what=ANY_PORT, port=50001, trip_s=2e-4),
]
SHAPE = ["learner.ranks=2", "engine.count=2"]


def found(
    first: MachineFacts = FIRST,
    second: MachineFacts | None = SECOND,
    probes: list[Probe] = PROBES,
    shape: list[str] = SHAPE,
) -> list[str]:
    facts = [first, *([second] if second else [])]
    return list(cluster_problems(facts, probes, 2, load(CONFIG, shape)))


def other(**changes: Any) -> MachineFacts:
    return msgspec.structs.replace(SECOND, **changes)


def shut(what: str) -> list[Probe]:
    return [
        msgspec.structs.replace(p, why="timed out") if p.what == what and p.target == 0 else p
        for p in PROBES
    ]


def test_machines_that_fit_have_no_problem() -> None:
    assert found() == []


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"versions": {**FIRST.versions, "torch": "2.12.0"}}, "torch differs: 2.13.0 on machine 0"),
        ({"versions": {"python": "3.11.7", "torch": "2.13.0", "darts": "abc"}}, "vllm differs"),
        ({"versions": {**FIRST.versions, "darts": "xyz"}}, "darts differs: abc on machine 0, xyz"),
        ({"config": "d" * 16}, "the configuration differs, by checksum: cccccccc on machine 0"),
        ({"model": "n" * 16}, "the model differs, by checksum"),
        ({"model": ""}, "models/chain-sums: no model; every machine needs it at this path"),
        (
            {"shm_free": GIB},
            "machine 1: 1.0 GiB free in /dev/shm, two versions of",
        ),
        ({"taken": {"tokens": "10.0.0.2:1: in use"}}, "machine 1: cannot listen for tokens"),
        ({"ranks": 3}, "torchrun started 5 ranks, but learner.ranks 2"),
    ],
)
def test_what_differs_or_is_missing_is_named_with_its_machine(
    changes: dict[str, Any], words: str
) -> None:
    [problem] = found(second=other(**changes))
    assert words in problem


def test_room_for_checkpoints_is_asked_of_the_first_machine_alone() -> None:
    assert found(second=other(disk_free=0)) == []
    [problem] = found(first=msgspec.structs.replace(FIRST, disk_free=GIB // 2))
    assert problem.startswith("machine 0: 512.0 MiB free on the disk")


@pytest.mark.parametrize("what", STAGE_PORTS)
def test_each_port_of_the_first_machine_has_to_be_reached(what: str) -> None:
    [problem] = found(probes=shut(what))
    assert f"machine 1 does not reach machine 0 at port {FIRST.ports[what]} ({what})" in problem


def test_any_port_has_to_be_open_only_between_machines_of_learner_ranks() -> None:
    assert found(probes=shut(ANY_PORT)) == []
    [problem] = found(probes=shut(ANY_PORT), shape=[*SHAPE, "nodes.learners=spread"])
    assert "(gloo or NCCL): timed out" in problem
    unknown = msgspec.structs.replace(FIRST, ranks=0)
    assert len(found(first=unknown, probes=shut(ANY_PORT))) == 1, "they may be anywhere"


def test_who_has_not_come_or_has_said_nothing_is_named() -> None:
    assert "machine 1: did not join; start the same command there" in found(second=None)
    silent = [p for p in PROBES if p.source == 0]
    assert found(probes=silent) == [
        "machine 1: joined, but did not report which machines it reaches"
    ]


def test_a_clock_that_is_off_is_a_note_and_no_problem() -> None:
    late = [msgspec.structs.replace(p, ahead_s=-90.0, error_s=0.001) for p in PROBES]
    [note] = cluster_notes(late)
    assert "machine 0 is -90.0 s from that of machine 1" in note
    assert found(probes=late) == []


def test_the_table_has_a_line_for_each_machine_and_each_way() -> None:
    lines = cluster_table([FIRST, SECOND], shut("tokens"))
    assert len(lines) == 3 + 1 + 1 + len(PROBES)
    [tokens] = [line for line in lines if "tokens" in line]
    assert tokens.split()[:4] == ["1", "0", "40001", "tokens"]
    assert tokens.endswith("NO: timed out")


# --- sockets --------------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[Listeners]:
    made = Listeners(1, LOOPBACK, {ANY_PORT: free_port()})
    yield made
    made.close()


def loopback(listening: Listeners) -> MachineFacts:
    return other(address=LOOPBACK, ports=listening.ports)


def test_a_port_that_answers_tells_round_trip_and_clock(listening: Listeners) -> None:
    probe = probe_port(0, loopback(listening), ANY_PORT, listening.ports[ANY_PORT])
    assert (probe.why, probe.source, probe.target) == ("", 0, 1)
    assert 0 < probe.trip_s < 1
    assert abs(probe.ahead_s) <= probe.error_s + 1e-3


def test_a_port_where_nobody_or_somebody_else_listens_is_not_reached(listening: Listeners) -> None:
    assert "refused" in probe_port(0, loopback(listening), ANY_PORT, free_port()).why
    stranger = msgspec.structs.replace(loopback(listening), node=7)
    why = probe_port(0, stranger, ANY_PORT, listening.ports[ANY_PORT]).why
    assert why == "machine 1 answers there"


@pytest.mark.parametrize(
    "stored, settings, times",
    [
        ("bfloat16", [], 2),
        ("float32", [], 1),
        ("bfloat16", ["engine.dtype=bfloat16"], 1),
        ("bfloat16", ["engine.dtype=auto"], 2),
        (
            "bfloat16",
            ["engine.dtype=auto", "learner.dtype=bfloat16", "learner.zero=1"],
            1,
        ),
    ],
)
def test_room_for_weights_is_that_of_what_engines_get_not_of_the_file(
    tmp_path: Path, stored: str, settings: list[str], times: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"dtype": stored}))
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    config = load(CONFIG, [f"model={tmp_path}", *settings])
    place = Participant(node=0, machines=1, head=LOOPBACK, port=1, ranks=0, torchrun=False)
    facts = facts_of(place, config, {}, {})
    assert (facts.model_bytes, facts.weights_bytes) == (1000, 1000 * times)


def test_a_port_that_is_taken_is_told() -> None:
    with closing(socket.create_server((LOOPBACK, 0))) as taken:
        port = taken.getsockname()[1]
        made = Listeners(0, LOOPBACK, {"tokens": port})
        made.close()
    assert made.ports == {}
    assert f"{LOOPBACK}:{port}" in made.taken["tokens"]


def survey_of(machines: int, here: list[int], secrets: list[bytes], wait_s: float) -> Any:
    """What each of these machines says, all on this one; and its exit status."""
    config, port = load(CONFIG, ["learner.ranks=1"]), free_port()
    said: list[list[str]] = [[] for _ in here]

    def one(number: int, node: int) -> int:
        place = Participant(
            node=node, machines=machines, head=LOOPBACK, port=port, ranks=0, torchrun=False
        )
        return probe_cluster(
            place, config, SharedSecret(secrets[number]), wait_s, said[number].append
        )

    with ThreadPoolExecutor(len(here)) as pool:
        futures = [pool.submit(one, number, node) for number, node in enumerate(here)]
    return said, [future.exception() or future.result() for future in futures]


def test_machines_started_by_hand_agree_that_a_run_would_start() -> None:
    (first, second), ends = survey_of(2, [0, 1], [b"", b""], 60.0)
    assert ends == [0, 0], first
    assert first[-1] == "a run would start"
    assert second == ["machine 1: a run would start; details on the first machine"]


def test_a_machine_that_does_not_come_is_waited_for_and_named() -> None:
    [said], ends = survey_of(2, [0], [b""], 1.0)
    assert ends == [1]
    assert said[-1] == "a run would not start: 1 problem"
    assert said[-2] == "BAD   machine 1: did not join; start the same command there"


def test_a_machine_with_another_secret_has_not_come() -> None:
    (first, _), ends = survey_of(2, [0, 1], [b"one", b"other"], 2.0)
    assert ends[0] == 1 and "machine 1: did not join" in first[-2]
    assert isinstance(ends[1], ProbeError)


def test_what_it_needs_without_torchrun_is_told() -> None:
    told = CliRunner().invoke(app, ["doctor", "--cluster", str(CONFIG)])
    assert told.exit_code == 1
    assert "start it with torchrun, or on each machine with --head HOST:PORT" in " ".join(
        told.stderr.split()
    )


# --- two machines ---------------------------------------------------------------------------


@pytest.fixture
def machines() -> Iterator[Machines]:
    if reason := why_not():
        pytest.skip(reason)
    with two_machines() as both:
        yield both


@pytest.mark.fault("a port between two machines is blocked", part="network", by="process")
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_blocked_port_between_two_machines_is_found_before_a_run_starts(
    machines: Machines, tmp_path: Path
) -> None:
    """Promise: `darts doctor --cluster` under torchrun names machines, port and what it is for, and
    ends with status 1 on both; every other way is reached, with its round trip.
    Bound: 3 s for the port that does not answer; 120 s in all.
    """
    port = 40000
    machines.block(1, port + 1)
    arguments = ["doctor", "--cluster", str(CONFIG), f"nodes.port={port}", *SHAPE]
    with ExitStack() as stack:
        jobs = [
            stack.enter_context(
                Started(
                    machines.torchrun(machine, 2, arguments, module="launch.cli"),
                    tmp_path / f"machine{machine}.log",
                )
            )
            for machine in (0, 1)
        ]
        statuses = [job.wait(120) for job in jobs]
    text = jobs[0].text
    assert statuses == [1, 1], text
    assert f"BAD   machine 1 does not reach machine 0 at port {port + 1} (tokens): " in text
    assert "a run would not start: 1 problem" in text
    ways = [line.split() for line in text.splitlines() if line[:1] in "01" and " ms " in line]
    assert {(way[0], way[1]) for way in ways} == {("0", "1"), ("1", "0")}
    assert {int(way[2]) for way in ways} >= {port, port + 2, port + 3}
    assert "machine 1: a run would not start" in jobs[1].text
