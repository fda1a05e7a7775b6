"""`darts doctor --cluster`: a process on each machine checks it and probes the others' ports.

Under torchrun the first rank of each machine does this; without it, a process started by hand with
`--head`, `--nodes` and `--node`. They exchange results through a store, as the ranks of a job do.
The first machine prints the findings (`cluster_report`), and all end with the same status.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import xxhash

from launch.commands.train import installed_versions
from launch.doctor import cluster_report
from launch.doctor.cluster_report import ANY_PORT, STAGE_PORTS, MachineFacts, Probe
from launch.launcher.ports import free_port
from launch.torchrun.agent import warning_of_parent
from launch.torchrun.network import interface_towards, own_address
from launch.torchrun.node import Node, config_digest
from launch.torchrun.rendezvous import POLL_S, SharedSecret, Store, read_message, read_secret
from pipeline.config.schema import Config
from pipeline.data.tokenizer import ModelError, read_json
from pipeline.system.temp_dirs import SHARED_MEMORY
from pipeline.system.terminal_text import counted
from pipeline.wire.clock_sync import PeerClock

PROBE_LIMIT_S = 3.0
"""Seconds after which a port that has not answered counts as not reached."""
_PINGS = 8
_VERDICT_LIMIT_S = 10.0  # the first machine keeps its store open until the others have the verdict
_SAMPLE = 1 << 20  # bytes at both ends of a weights file that go into its checksum
_T = TypeVar("_T", bound=msgspec.Struct)


class Participant(msgspec.Struct, frozen=True, kw_only=True):
    """This process among the machines."""

    node: int
    machines: int
    head: str  # address of the first machine
    port: int  # of the store there
    ranks: int  # that torchrun starts on this machine; 0: not known
    torchrun: bool

    @classmethod
    def by_torchrun(cls, environment: Mapping[str, str]) -> Participant:
        node = Node.from_torchrun(environment)
        return cls(
            node=node.number,
            machines=node.machines,
            head=node.host,
            port=int(environment["MASTER_PORT"]),
            ranks=int(environment["LOCAL_WORLD_SIZE"]),
            torchrun=True,
        )


class ProbeError(Exception):
    """This machine cannot take part; the message says why, and what to look at."""


def open_store(me: Participant, limit_s: float) -> Store:
    """Opens torchrun's store, or one on the first machine. Raises ProbeError."""
    from torch.distributed import TCPStore

    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and me.torchrun
    limit = timedelta(seconds=limit_s)
    try:
        return TCPStore(
            *(me.head, me.port),
            is_master=me.node == 0 and not shared,
            wait_for_workers=False,
            timeout=limit,
        )
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ProbeError(
            f"machine {me.node}: no store at {me.head}:{me.port} within {limit_s:.0f} s: {first}; "
            "check that the doctor runs on the first machine and that the port is open"
        ) from error


# --- this machine -----------------------------------------------------------------------------


def facts_of(
    me: Participant, config: Config, ports: dict[str, int], taken: dict[str, str]
) -> MachineFacts:
    """Collects what this machine knows without asking the others."""
    model = Path(config.model)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    shm = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path.cwd()
    return MachineFacts(
        node=me.node,
        host=socket.gethostname(),
        address=_address(me, config),
        ranks=me.ranks,
        versions=installed_versions() | {"darts": _sources()},
        config=config_digest(config),
        model=_model_checksum(model),
        model_bytes=size,
        weights_bytes=size * (2 if _widened(config) else 1),
        shm_free=shutil.disk_usage(shm).free,
        disk_free=shutil.disk_usage(Path.cwd()).free,
        ports=ports,
        taken=taken,
    )


def _sources() -> str:
    """Checksum of darts' own modules: installed or not, edited or not."""
    digest = xxhash.xxh3_64()
    root = Path(__file__).resolve().parents[2]
    for package in ("pipeline", "engines", "learner", "launch"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def _model_checksum(model: Path) -> str:
    """Checksum over all small files, and size and both ends of weights; '' without a model."""
    if not (model / "config.json").is_file():
        return ""
    digest = xxhash.xxh3_64()
    for path in sorted(p for p in model.iterdir() if p.suffix in (".json", ".safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            if path.suffix == ".json":
                digest.update(file.read())
                continue
            digest.update(str(path.stat().st_size).encode() + file.read(_SAMPLE))
            file.seek(max(0, path.stat().st_size - _SAMPLE))
            digest.update(file.read())
    return digest.hexdigest()


def _widened(config: Config) -> bool:
    """Returns True if engines get float32 weights and the model's file has 16 bits a weight."""
    published = config.learner.dtype if config.engine.dtype == "auto" else config.engine.dtype
    try:
        settings = read_json(Path(config.model) / "config.json")
    except ModelError:  # a missing model is reported elsewhere
        return False
    stored = settings.get("dtype") or settings.get("torch_dtype")
    return published == "float32" and stored in ("bfloat16", "float16")


def _address(me: Participant, config: Config) -> str:
    """The address at which this machine listens, as a job's processes would."""
    if me.node == 0:
        return own_address(config.nodes.interface, me.head)
    interface = os.environ.get("GLOO_SOCKET_IFNAME") or interface_towards(me.head)
    return own_address(interface, me.head)


class Listeners:
    """Answers every probe with the machine's number and clock, until it is closed."""

    def __init__(self, node: int, address: str, wanted: Mapping[str, int]) -> None:
        self._node = node
        self.ports: dict[str, int] = {}
        self.taken: dict[str, str] = {}
        self._sockets: list[socket.socket] = []
        for what, port in wanted.items():
            try:
                listening = socket.create_server((address, port))
            except OSError as error:
                self.taken[what] = f"{address}:{port}: {error.strerror or error}"
                continue
            self.ports[what] = listening.getsockname()[1]
            self._sockets.append(listening)
            threading.Thread(target=self._serve, args=(listening,), daemon=True).start()

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:  # the prober may disconnect at any time
            connection.settimeout(PROBE_LIMIT_S)
            while connection.recv(1):
                said = {"node": self._node, "clock": time.time()}
                connection.sendall(json.dumps(said).encode() + b"\n")

    def close(self) -> None:
        for listening in self._sockets:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()


def wanted_ports(me: Participant, config: Config, address: str) -> dict[str, int]:
    """Purpose -> port at which this machine is to listen."""
    found = {ANY_PORT: free_port(address)}
    if me.node == 0:
        first = config.nodes.port
        numbers = (first + n if first else free_port(address) for n in range(len(STAGE_PORTS)))
        found |= dict(zip(STAGE_PORTS, numbers, strict=True))
    return found


# --- the others -------------------------------------------------------------------------------


def probe_port(source: int, target: MachineFacts, what: str, port: int) -> Probe:
    """Measures round trips to another machine's port; the shortest gives its clock, as in NTP."""
    clock, trips = PeerClock(0.0, 0.0, same=False), list[float]()
    why = ""
    try:
        with socket.create_connection((target.address, port), timeout=PROBE_LIMIT_S) as connection:
            answers = connection.makefile("rb")
            for _ in range(_PINGS):
                asked = time.time()
                connection.sendall(b"?")
                said = json.loads(answers.readline() or b"{}")
                now = time.time()
                if said.get("node") != target.node:
                    raise ConnectionError(f"machine {said.get('node', 'unknown')} answers there")
                clock.add_heartbeat(now, said["clock"], asked, 0.0)
                trips.append(now - asked)
    except (OSError, ValueError) as error:
        why = str(error)
    return Probe(
        source=source,
        target=target.node,
        what=what,
        port=port,
        why=why,
        trip_s=min(trips, default=0.0),
        ahead_s=0.0 if why else -clock.offset_s,
        error_s=0.0 if why else clock.error_s,
    )


def probe_all_ports(own: MachineFacts, others: Sequence[MachineFacts]) -> list[Probe]:
    """Probes every port of every other machine, in parallel."""
    targets = [(f, what, port) for f in others for what, port in f.ports.items()]
    with ThreadPoolExecutor(max_workers=32) as pool:
        return list(pool.map(lambda target: probe_port(own.node, *target), targets))


class _Board:
    """Signed messages of the machines to each other, in the store."""

    def __init__(self, store: Store, secret: SharedSecret, me: Participant, limit_s: float) -> None:
        self._store, self._secret, self._me, self._limit_s = (
            store,
            secret,
            me,
            limit_s,
        )

    def post(self, what: str, message: msgspec.Struct) -> None:
        key = f"darts/doctor/{what}/{self._me.node}"
        self._store.set(key, self._secret.sign_message(key, message))

    def wait_for_posts(
        self, what: str, kind: type[_T], nodes: Sequence[int], limit_s: float | None = None
    ) -> dict[int, _T]:
        """Returns the messages that came within the limit, by machine."""
        found: dict[int, _T] = {}
        deadline = time.monotonic() + (self._limit_s if limit_s is None else limit_s)
        while len(found) < len(nodes) and time.monotonic() < deadline:
            for node in nodes:
                key = f"darts/doctor/{what}/{node}"
                if node not in found:
                    post = read_message(self._store, self._secret, key, kind)
                    if post is not None:
                        found[node] = post
            if len(found) < len(nodes):
                time.sleep(POLL_S)
        return found


class _Reached(msgspec.Struct, frozen=True):
    probes: list[Probe]


class _Verdict(msgspec.Struct, frozen=True):
    problems: list[str]


def run_probe(
    config: Config, head: str, nodes: int, node: int, secret: Path | None, wait_s: float
) -> int:
    """Runs under torchrun or by hand. Returns the exit status.

    Raises: as `probe_cluster`, and OSError.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if os.environ["LOCAL_RANK"] != "0":
            return 0  # one process represents a machine
        me = Participant.by_torchrun(os.environ)
        if me.node == 0 and (text := warning_of_parent()):
            print(f"note  {text}")
    else:
        host, _, port = head.rpartition(":")
        if not host or not port.isdecimal() or node >= nodes:
            raise ProbeError(
                f"--head {head!r}, machine {node} of {nodes}: start it with torchrun, or on each "
                "machine with --head HOST:PORT of the first one, --nodes, and --node from 0"
            )
        me = Participant(
            node=node, machines=nodes, head=host, port=int(port), ranks=0, torchrun=False
        )
    shared = read_secret(secret)
    return probe_cluster(me, config, shared, wait_s, say=print)


def probe_cluster(
    me: Participant, config: Config, secret: SharedSecret, limit_s: float, say: Callable[[str], Any]
) -> int:
    """Checks and probes, on each machine. Returns the exit status, the same on all of them.

    Raises: ProbeError, TransportError.
    """
    board = _Board(open_store(me, limit_s), secret, me, limit_s)
    address = _address(me, config)
    wanted = wanted_ports(me, config, address)
    try:
        with contextlib.closing(Listeners(me.node, address, wanted)) as listeners:
            own = facts_of(me, config, listeners.ports, listeners.taken)
            board.post("facts", own)
            facts = board.wait_for_posts("facts", MachineFacts, range(me.machines))
            others = [f for node, f in sorted(facts.items()) if node != me.node]
            board.post("reached", _Reached(probe_all_ports(own, others)))
            if me.node == 0:
                return _conclude(board, facts, me, config, say)
            verdict = board.wait_for_posts("verdict", _Verdict, [0])
            board.post("heard", _Verdict([]))
    except RuntimeError as error:  # of the store
        raise ProbeError(
            f"machine {me.node}: the first machine is gone: {str(error).splitlines()[0]}"
        ) from error
    if not verdict:
        raise ProbeError(f"machine {me.node}: no verdict from the first machine")
    found = verdict[0].problems
    say(f"machine {me.node}: {_verdict_line(found)}; details on the first machine")
    return int(bool(found))


def _conclude(
    board: _Board,
    facts: dict[int, MachineFacts],
    me: Participant,
    config: Config,
    say: Callable[[str], Any],
) -> int:
    """Collects and judges the results on the first machine; prints and posts the verdict."""
    here = sorted(facts)
    reached = board.wait_for_posts("reached", _Reached, here)
    probes = [probe for found in reached.values() for probe in found.probes]
    known = [facts[node] for node in here]
    found = list(cluster_report.cluster_problems(known, probes, me.machines, config))
    board.post("verdict", _Verdict(found))
    for line in _report_lines(known, probes, found):
        say(line)
    board.wait_for_posts("heard", _Verdict, [node for node in here if node], _VERDICT_LIMIT_S)
    return int(bool(found))


def _report_lines(
    facts: Sequence[MachineFacts], probes: Sequence[Probe], found: Sequence[str]
) -> Iterator[str]:
    yield from cluster_report.cluster_table(facts, probes)
    yield ""
    yield from (f"note  {line}" for line in cluster_report.cluster_notes(probes))
    yield from (f"BAD   {line}" for line in found)
    yield _verdict_line(found)


def _verdict_line(found: Sequence[str]) -> str:
    return (
        f"a run would not start: {counted(len(found), 'problem')}" if found else "a run would start"
    )
