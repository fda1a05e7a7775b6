"""`darts doctor --cluster`: a process on every machine looks at its own and knocks at the others'.

Under torchrun the first rank of each machine does it, by hand whoever is started with
`--head`, `--nodes` and `--node`. They tell each other through a store, as the ranks of a
job do; the first machine prints what was found (`cluster` judges it), and all end with
the same status.
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

from launch.commands.train import versions
from launch.doctor import cluster_report
from launch.doctor.cluster_report import ANY_PORT, STAGE_PORTS, Facts, Probe
from launch.launcher.local import free_port
from launch.torchrun.network import interface_towards, own_address
from launch.torchrun.node import Node, digest_of
from launch.torchrun.rendezvous import POLL_S, Seal, Store
from pipeline.config.schema import Config
from pipeline.data.tokenizer import ModelError, read_json
from pipeline.system.temp_dirs import SHARED_MEMORY
from pipeline.wire.clock_sync import PeerClock

KNOCK_S = 3.0
"""A port that has not answered by then is not reached."""
_PINGS = 8
_LAST_WORD_S = 10.0  # the first machine's store stays for the others to hear the end
_SAMPLE = 1 << 20  # bytes at either end of a file of weights that stand for it
_T = TypeVar("_T", bound=msgspec.Struct)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Of this process among the machines."""

    node: int
    machines: int
    head: str  # address of the first machine
    port: int  # of the store there
    ranks: int  # that torchrun starts on this machine; 0: not known
    torchrun: bool

    @classmethod
    def by_torchrun(cls, environment: Mapping[str, str]) -> Place:
        node = Node.of(environment)
        return cls(
            node=node.number,
            machines=node.machines,
            head=node.host,
            port=int(environment["MASTER_PORT"]),
            ranks=int(environment["LOCAL_WORLD_SIZE"]),
            torchrun=True,
        )


class SurveyError(Exception):
    """This machine cannot take part; the message says why, and what to look at."""


def open_store(place: Place, limit_s: float) -> Store:
    """Torchrun's, or one on the first machine. Raises SurveyError."""
    from torch.distributed import TCPStore

    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and place.torchrun
    limit = timedelta(seconds=limit_s)
    try:
        return TCPStore(
            *(place.head, place.port),
            is_master=place.node == 0 and not shared,
            wait_for_workers=False,
            timeout=limit,
        )
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise SurveyError(
            f"machine {place.node}: no store at {place.head}:{place.port} within {limit_s:.0f} s: "
            f"{first}; is the doctor started on the first machine, and the port open?"
        ) from error


# --- this machine -----------------------------------------------------------------------------


def facts_of(place: Place, config: Config, ports: dict[str, int], taken: dict[str, str]) -> Facts:
    """What can be told without asking anybody."""
    model = Path(config.model)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    shm = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path.cwd()
    return Facts(
        node=place.node,
        host=socket.gethostname(),
        address=_address(place, config),
        ranks=place.ranks,
        versions=versions() | {"darts": _sources()},
        config=digest_of(config),
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
    """Of small files all, of weights the size and both ends; '' where there is no model."""
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
    """Whether engines get float32 of a model whose file has 16 bits a weight."""
    published = config.learner.dtype if config.engine.dtype == "auto" else config.engine.dtype
    try:
        settings = read_json(Path(config.model) / "config.json")
    except ModelError:  # that there is none is told as such
        return False
    stored = settings.get("dtype") or settings.get("torch_dtype")
    return published == "float32" and stored in ("bfloat16", "float16")


def _address(place: Place, config: Config) -> str:
    """Where this machine listens, as a job's parts would."""
    if place.node == 0:
        return own_address(config.nodes.interface, place.head)
    interface = os.environ.get("GLOO_SOCKET_IFNAME") or interface_towards(place.head)
    return own_address(interface, place.head)


class Listeners:
    """Answers whoever knocks with the machine's number and clock, until it is closed."""

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
        with contextlib.suppress(OSError), connection:  # who knocks may go at any time
            connection.settimeout(KNOCK_S)
            while connection.recv(1):
                said = {"node": self._node, "clock": time.time()}
                connection.sendall(json.dumps(said).encode() + b"\n")

    def close(self) -> None:
        for listening in self._sockets:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()


def wanted_ports(place: Place, config: Config, address: str) -> dict[str, int]:
    """For what, and at which port this machine is to listen."""
    found = {ANY_PORT: free_port(address)}
    if place.node == 0:
        first = config.nodes.port
        numbers = (first + n if first else free_port(address) for n in range(len(STAGE_PORTS)))
        found |= dict(zip(STAGE_PORTS, numbers, strict=True))
    return found


# --- the others -------------------------------------------------------------------------------


def knock(source: int, target: Facts, what: str, port: int) -> Probe:
    """Round trips to a port of another machine; the shortest tells its clock, as NTP does it."""
    clock, trips = PeerClock(0.0, 0.0, same=False), list[float]()
    why = ""
    try:
        with socket.create_connection((target.address, port), timeout=KNOCK_S) as connection:
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


def knock_at_all(own: Facts, others: Sequence[Facts]) -> list[Probe]:
    """At every port of every other machine, at once."""
    doors = [(f, what, port) for f in others for what, port in f.ports.items()]
    with ThreadPoolExecutor(max_workers=32) as pool:
        return list(pool.map(lambda door: knock(own.node, *door), doors))


class _Board:
    """What each machine has said, sealed, in the store."""

    def __init__(self, store: Store, seal: Seal, place: Place, limit_s: float) -> None:
        self._store, self._seal, self._place, self._limit_s = store, seal, place, limit_s

    def say(self, what: str, message: msgspec.Struct) -> None:
        key = f"darts/doctor/{what}/{self._place.node}"
        self._store.set(key, self._seal.close(key, message))

    def hear(
        self, what: str, kind: type[_T], nodes: Sequence[int], limit_s: float | None = None
    ) -> dict[int, _T]:
        """Of those that have said it within the limit."""
        found: dict[int, _T] = {}
        deadline = time.monotonic() + (self._limit_s if limit_s is None else limit_s)
        while len(found) < len(nodes) and time.monotonic() < deadline:
            for node in nodes:
                key = f"darts/doctor/{what}/{node}"
                if node not in found and self._store.check([key]):
                    body = self._seal.open(key, self._store.get(key))
                    if body is not None:
                        found[node] = msgspec.json.decode(body, type=kind)
            if len(found) < len(nodes):
                time.sleep(POLL_S)
        return found


class _Reached(msgspec.Struct, frozen=True):
    probes: list[Probe]


class _Verdict(msgspec.Struct, frozen=True):
    problems: list[str]


def take_part(
    config: Config, head: str, nodes: int, node: int, secret: Path | None, wait_s: float
) -> int:
    """Under torchrun, or by hand. Returns the exit status. Raises as `survey`, and OSError."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if os.environ["LOCAL_RANK"] != "0":
            return 0  # one process speaks for a machine
        place = Place.by_torchrun(os.environ)
    else:
        host, _, port = head.rpartition(":")
        if not host or not port.isdecimal() or node >= nodes:
            raise SurveyError(
                f"--head {head!r}, machine {node} of {nodes}: start it by torchrun, or with "
                "--head HOST:PORT of the first machine, --nodes, and --node from 0 on each"
            )
        place = Place(node=node, machines=nodes, head=host, port=int(port), ranks=0, torchrun=False)
    seal = Seal(secret.read_bytes() if secret else b"")
    return survey(place, config, seal, wait_s, say=print)


def survey(
    place: Place, config: Config, seal: Seal, limit_s: float, say: Callable[[str], Any]
) -> int:
    """The whole of it, on each machine. Returns the exit status, the same on all of them.

    Raises: SurveyError, TransportError.
    """
    try:
        return _survey(place, config, seal, limit_s, say)
    except RuntimeError as error:  # of the store
        raise SurveyError(
            f"machine {place.node}: the first machine is gone: {str(error).splitlines()[0]}"
        ) from error


def _survey(
    place: Place, config: Config, seal: Seal, limit_s: float, say: Callable[[str], Any]
) -> int:
    store = open_store(place, limit_s)
    board = _Board(store, seal, place, limit_s)
    address = _address(place, config)
    listeners = Listeners(place.node, address, wanted_ports(place, config, address))
    try:
        own = facts_of(place, config, listeners.ports, listeners.taken)
        board.say("facts", own)
        everybody = range(place.machines)
        facts = board.hear("facts", Facts, everybody)
        others = [f for node, f in sorted(facts.items()) if node != place.node]
        board.say("reached", _Reached(knock_at_all(own, others)))
        if place.node == 0:
            return _conclude(board, facts, place, config, say)
        heard = board.hear("verdict", _Verdict, [0])
        board.say("heard", _Verdict([]))
        if not heard:
            raise SurveyError(f"machine {place.node}: the first machine has come to no end")
        found = heard[0].problems
        say(f"machine {place.node}: {_word(found)}; the first machine says more")
        return int(bool(found))
    finally:
        listeners.close()


def _conclude(
    board: _Board,
    facts: dict[int, Facts],
    place: Place,
    config: Config,
    say: Callable[[str], Any],
) -> int:
    """The first machine: gather, judge, tell people and the others."""
    here = sorted(facts)
    reached = board.hear("reached", _Reached, here)
    probes = [probe for found in reached.values() for probe in found.probes]
    known = [facts[node] for node in here]
    found = list(cluster_report.problems(known, probes, place.machines, config))
    board.say("verdict", _Verdict(found))
    for line in _told(known, probes, found):
        say(line)
    board.hear("heard", _Verdict, [node for node in here if node], _LAST_WORD_S)
    return int(bool(found))


def _told(facts: Sequence[Facts], probes: Sequence[Probe], found: Sequence[str]) -> Iterator[str]:
    yield from cluster_report.table(facts, probes)
    yield ""
    yield from (f"note  {line}" for line in cluster_report.notes(probes))
    yield from (f"BAD   {line}" for line in found)
    yield _word(found)


def _word(found: Sequence[str]) -> str:
    return f"a run would not start: {len(found)} problem(s)" if found else "a run would start"
