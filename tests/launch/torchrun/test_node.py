"""What rank 0 tells the others, and what it writes for whom."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from launch.torchrun.node import (
    Node,
    RoundPlan,
    join_arguments,
    join_arguments_in_memory,
    make_site,
    write_join_files,
)
from launch.torchrun.rendezvous import Hello
from pipeline.config.schema import Config, EngineConfig, LearnerConfig, NodesConfig
from pipeline.system.micro_batch_limit import keep_limit
from pipeline.system.run_folder import RunFolder
from pipeline.system.temp_dirs import shared_directory
from pipeline.wire.curve_auth import new_pair
from pipeline.wire.keys import (
    KeyOwner,
    ListenKeys,
    PeerKeys,
    TransportError,
    peer_keys_of,
    read_private,
)

TWO = Config(
    model="m",
    learner=LearnerConfig(ranks=2),
    engine=EngineConfig(count=2),
    nodes=NodesConfig(learners="spread", interface="lo"),
)


def node_of(machines: int) -> Node:
    return Node(rank=0, world=4, local_rank=0, number=0, machines=machines, host="localhost")


def hellos(*nodes: int, config: str = "c") -> dict[int, Hello]:
    return {
        rank: Hello(number=f"n{rank}", node=node, key=new_pair().public, config=config)
        for rank, node in enumerate(nodes, start=1)
    }


def test_machines_of_torchruns_variables() -> None:
    told = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "GROUP_RANK": "1"}
    told |= {"GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}
    assert Node.from_torchrun(told) == Node(5, 8, 1, 1, 2, "10.0.0.1")


def test_peers_of_rank_0s_machine_use_its_sockets_and_files_others_the_network() -> None:
    plan = RoundPlan.for_job(TWO, node_of(2))
    places = plan.assignments(hellos(0, 1, 1), RunFolder(Path("/run")), None, "c")
    assert [place.name for place in places.values()] == ["e0", "l1", "e1"]
    assert places[1].control.startswith("ipc://")
    assert places[1].weights == ""
    assert [place.control for place in (places[2], places[3])] == [plan.control] * 2
    assert plan.control.startswith("tcp://127.0.0.1:")
    assert places[3].weights == plan.weights
    assert {place.server for place in places.values()} == {plan.server.public}


def test_on_one_machine_nobody_has_a_key_and_nothing_listens_on_a_network(tmp_path: Path) -> None:
    plan, run = RoundPlan.for_job(TWO, node_of(1)), RunFolder(tmp_path / "run")
    run.make_folders()
    said = hellos(0, 0, 0)
    for place in plan.assignments(said, run, None, "c").values():
        assert place.control.startswith("ipc://")
        assert place.server == ""
    site = make_site(plan, said, run, "")
    assert site.listen_keys is None
    assert not list(run.path.glob("*.key"))


def test_other_ranks_are_told_how_large_micro_batches_may_be(tmp_path: Path) -> None:
    plan, run = RoundPlan.for_job(TWO, node_of(1)), RunFolder(tmp_path / "run")
    run.make_folders()
    setting, said = TWO.learner.tokens_per_micro_batch, hellos(0, 0, 0)

    def told() -> set[int]:
        return {p.micro_batch_tokens for p in plan.assignments(said, run, None, "c").values()}

    assert told() == {setting}
    assert keep_limit(run, setting, 70)
    assert told() == {70}


def test_another_configuration_or_number_of_ranks_is_refused() -> None:
    plan = RoundPlan.for_job(TWO, node_of(2))
    other = plan.assignments(hellos(0, 1, 1, config="d"), RunFolder(Path("/run")), None, "c")
    assert all("its configuration differs from rank 0's" in p.refused for p in other.values())
    few = RoundPlan.for_job(TWO, Node(0, 3, 0, 0, 2, "localhost"))
    refused = few.assignments(hellos(0, 1), RunFolder(Path("/run")), None, "c")
    assert all("started 3 ranks" in place.refused for place in refused.values())


def test_fixed_ports_are_four_in_a_row() -> None:
    nodes = NodesConfig(interface="lo", port=40100)
    plan = RoundPlan.for_job(msgspec.structs.replace(TWO, nodes=nodes), node_of(2))
    assert [plan.control, plan.data, plan.weights, plan.port] == [
        *(f"tcp://127.0.0.1:{port}" for port in (40100, 40101, 40102)),
        40103,
    ]


def test_key_files_of_stage_rank_0_and_guests_are_for_their_owner_alone(tmp_path: Path) -> None:
    plan, run = RoundPlan.for_job(TWO, node_of(2)), RunFolder(tmp_path / "run")
    run.make_folders()
    said = hellos(0, 1, 1)
    site = make_site(plan, said, run, "model: m")
    assert site.listen_keys is not None
    assert site.peer_keys is not None
    allowed = read_private(site.listen_keys, ListenKeys).allowed
    assert allowed[said[2].key] == KeyOwner("learner", "l1")
    assert allowed[plan.own.public] == KeyOwner("learner", "l0")
    guest = read_private(run.path / "join.key", PeerKeys)
    assert guest.keys is not None
    assert allowed[guest.keys.public] == KeyOwner("engine", "")
    assert guest.config == "model: m"
    for path in (site.listen_keys, site.peer_keys, run.path / "join.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert plan.server.secret not in (run.path / "join.key").read_text()


def test_what_is_handed_over_is_read_by_what_a_process_becomes() -> None:
    peer_keys = PeerKeys(control="c", data="d", server=new_pair().public, keys=new_pair())
    _, stage, _, config = join_arguments_in_memory(peer_keys, "model: m")
    assert peer_keys_of(Path(stage)) == peer_keys
    assert Path(config).read_text() == "model: m"
    for path in (stage, config):
        assert os.get_inheritable(int(path.rpartition("/")[2]))
        os.close(int(path.rpartition("/")[2]))


def test_every_interface_is_left_to_the_stage_to_refuse() -> None:
    wide = msgspec.structs.replace(TWO, nodes=NodesConfig(interface="0.0.0.0"))
    assert RoundPlan.for_job(wide, node_of(2)).control.startswith("tcp://0.0.0.0:")
    nowhere = msgspec.structs.replace(TWO, nodes=NodesConfig(interface="eth99"))
    with pytest.raises(TransportError, match="eth99"):
        RoundPlan.for_job(nowhere, node_of(2))


def test_what_is_left_in_a_scratch_directory_is_found_there() -> None:
    mine = shared_directory(os.getpid(), "test")
    try:
        write_join_files(mine, PeerKeys(control="c", data="d"), "model: m")
        _, stage, _, config = join_arguments(mine)
        assert peer_keys_of(Path(stage)).control == "c"
        assert Path(config).read_text() == "model: m"
    finally:
        shutil.rmtree(mine)
