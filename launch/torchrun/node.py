"""A machine of a torchrun job, and rank 0's plan: torchrun's variables and the ranks' hellos -> one
assignment for each rank.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from launch.launcher.local import Site
from launch.launcher.ports import LOOPBACK, free_ports
from launch.torchrun.network import own_address
from launch.torchrun.rendezvous import Assignment, Hello, allowed_keys
from launch.torchrun.roles import RolesError, assign_roles
from pipeline.config.load import dump
from pipeline.config.schema import Config
from pipeline.system.durable_files import write_file
from pipeline.system.micro_batch_limit import read_limit
from pipeline.system.run_folder import RunFolder
from pipeline.system.temp_dirs import shared_directory, socket_directory
from pipeline.wire.curve_auth import new_pair
from pipeline.wire.keys import KeyPair, ListenKeys, PeerKeys, addresses, write_private

CONFIG, _KEY = "config.yaml", "stage.key"
_PORTS = 4  # control, tokens, weights, learner ranks


def config_digest(config: Config) -> str:
    """Checksum of a configuration."""
    return hashlib.sha256(dump(config).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Node:
    """This process in torchrun's terms."""

    rank: int
    world: int
    local_rank: int
    number: int  # of the machine
    machines: int
    host: str  # rank 0's machine, as torchrun knows it

    @classmethod
    def from_torchrun(cls, environment: Mapping[str, str]) -> Node:
        """Reads torchrun's variables."""
        return cls(
            rank=int(environment["RANK"]),
            world=int(environment["WORLD_SIZE"]),
            local_rank=int(environment["LOCAL_RANK"]),
            number=int(environment["GROUP_RANK"]),
            machines=int(environment["GROUP_WORLD_SIZE"]),
            host=environment["MASTER_ADDR"],
        )

    def logs(self, run: Path) -> Path:
        """Makes the log directory of this machine's ranks; on rank 0's machine it is the run's."""
        logs = run / "logs" if self.number == 0 else run / "logs" / f"node{self.number}"
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        return logs

    def scratch(self, name: str) -> Path:
        """Makes a 0700 directory in memory for all ranks and restarts of this torchrun; it is
        removed after torchrun has ended."""
        return shared_directory(os.getppid(), name)


def write_join_files(directory: Path, peer_keys: PeerKeys, config: str) -> None:
    """Writes the key file and the configuration that a process needs to join the run."""
    write_private(directory / _KEY, peer_keys)
    write_file(directory / CONFIG, config)


def join_arguments_in_memory(peer_keys: PeerKeys, config: str) -> list[str]:
    """Returns the same arguments for nameless files, which are gone when this process ends."""
    paths: list[str] = []
    for content in (msgspec.json.encode(peer_keys), config.encode()):
        descriptor = os.memfd_create("darts", 0)  # survives `exec`
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, content)
        paths.append(f"/proc/self/fd/{descriptor}")
    return ["--stage", paths[0], "--config", paths[1]]


def join_arguments(directory: Path) -> list[str]:
    """Returns those files as arguments of `engines.worker` and `learner.learner_rank`."""
    return ["--stage", str(directory / _KEY), "--config", str(directory / CONFIG)]


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """Addresses and keys that rank 0 has chosen for this round."""

    config: Config
    node: Node
    host: str  # where this machine listens
    sockets: Path
    control: str
    data: str
    weights: str
    port: int  # where the learner ranks meet
    round: str = field(default_factory=lambda: secrets.token_hex(16))
    server: KeyPair = field(default_factory=new_pair)
    own: KeyPair = field(default_factory=new_pair)  # of learner rank 0
    guest: KeyPair = field(default_factory=new_pair)

    @classmethod
    def for_job(cls, config: Config, node: Node) -> RoundPlan:
        """Chooses addresses. Raises TransportError or OSError."""
        host = LOOPBACK
        if node.machines > 1:
            host = own_address(config.nodes.interface, node.host)
        first = config.nodes.port
        listening = "" if host == "*" else host
        ports = range(first, first + _PORTS) if first else free_ports(listening, _PORTS)
        control, data, weights, port = ports
        return cls(
            config=config,
            node=node,
            host=host if host not in ("*", "0.0.0.0") else node.host,  # noqa: S104
            sockets=socket_directory(),
            control=f"tcp://{host}:{control}",
            data=f"tcp://{host}:{data}",
            weights=f"tcp://{host}:{weights}",
            port=port,
        )

    @property
    def site(self) -> Site:
        """What all parts of the job on rank 0's machine share."""
        return Site(self.sockets, self.host, self.port, one_machine=not self.uses_keys)

    @property
    def uses_keys(self) -> bool:
        """Returns True if the stage listens on a network, where peers need keys."""
        return self.node.machines > 1

    def rank_names(self, hellos: Mapping[int, Hello]) -> list[str]:
        """Returns the role of each rank. Raises RolesError."""
        nodes = [self.node.number, *(hellos[rank].node for rank in range(1, self.node.world))]
        learner, engines = self.config.learner, self.config.engine.count
        return assign_roles(nodes, learner.ranks, engines, self.config.nodes.learners)

    def assignments(
        self, hellos: Mapping[int, Hello], run: RunFolder, resume: Path | None, digest: str
    ) -> dict[int, Assignment]:
        """Returns the assignment of each rank but rank 0."""
        tokens = read_limit(run, self.config.learner.tokens_per_micro_batch)
        refused, names = "", [""] * self.node.world
        try:
            names = self.rank_names(hellos)
        except RolesError as error:
            refused = str(error)
        found: dict[int, Assignment] = {}
        nodes = {0: self.node.number, **{rank: hello.node for rank, hello in hellos.items()}}
        learners = Counter(nodes[r] for r, name in enumerate(names) if name.startswith("l"))
        for rank, hello in hellos.items():
            here = hello.node == self.node.number
            ipc, ipc_data = addresses(self.sockets)
            why = refused
            if hello.config != digest:
                why = (
                    "its configuration differs from rank 0's: start every machine with the same one"
                )
            found[rank] = Assignment(
                round=self.round,
                name=names[rank],
                run=str(run.path),
                resume=str(resume or ""),
                host=self.host,
                port=self.port,
                ranks_store=self.site.ranks_store,
                micro_batch_tokens=tokens,
                control=ipc if here else self.remote_address(self.control),
                data=ipc_data if here else self.remote_address(self.data),
                weights="" if here else self.remote_address(self.weights),
                learners=learners[hello.node],
                server=self.server.public if self.uses_keys else "",
                refused=why,
            )
        return found

    def remote_address(self, endpoint: str) -> str:
        """Returns the endpoint as other machines reach it."""
        return f"tcp://{self.host}:{endpoint.rpartition(':')[2]}"


def make_site(plan: RoundPlan, hellos: Mapping[int, Hello], run: RunFolder, config: str) -> Site:
    """Writes the key files of stage, learner rank 0 and guests (`darts engine --join`)."""
    if not plan.uses_keys:
        plan.rank_names(hellos)
        return plan.site
    names = plan.rank_names(hellos)
    keys = allowed_keys(dict(enumerate(names)), hellos, {names[0]: plan.own, "": plan.guest})
    listen_keys = ListenKeys(
        control=plan.control, data=plan.data, weights=plan.weights, keys=plan.server, allowed=keys
    )
    control, data = addresses(plan.sockets)
    peer_keys = PeerKeys(control=control, data=data, server=plan.server.public, keys=plan.own)
    guest = PeerKeys(
        control=plan.remote_address(plan.control),
        data=plan.remote_address(plan.data),
        weights=plan.remote_address(plan.weights),
        server=plan.server.public,
        keys=plan.guest,
        config=config,
    )
    write_private(run.path / "join.key", guest)
    return replace(
        plan.site,
        listen_keys=write_private(plan.sockets / "stage.key", listen_keys),
        peer_keys=write_private(plan.sockets / f"{names[0]}.key", peer_keys),
    )
