"""Over TCP: who holds a known key comes in, under the name of its bearer; nobody else."""

from __future__ import annotations

import asyncio
import queue
import socket
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from pipeline.wire import client as links
from pipeline.wire import curve_auth as guards
from pipeline.wire.client import StageClient
from pipeline.wire.codec import encode_message
from pipeline.wire.curve_auth import new_pair
from pipeline.wire.keys import (
    KeyOwner,
    ListenKeys,
    PeerKeys,
    TransportError,
    endpoint_problem,
    read_private,
    write_private,
)
from pipeline.wire.messages import Alive, Join, Refused, TokenBatch, ToPeer, Welcome, WireError
from pipeline.wire.server import StageServer

SECONDS = 20.0
WELCOME = Welcome(incarnation=1, epoch=0, weights_directory="/w")
SERVER, E0, E1, GUEST, STRANGER = (new_pair() for _ in range(5))


def join_of(name: str, role: str = "engine") -> Join:
    return Join(protocol=1, role=role, name=name, slots=4)


def free_endpoints(count: int) -> list[str]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    found = [f"tcp://127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    for probe in probes:
        probe.close()
    return found


@pytest.fixture
def listen_keys() -> ListenKeys:
    control, data, weights = free_endpoints(3)
    allowed = {
        E0.public: KeyOwner("engine", "e0"),
        E1.public: KeyOwner("engine", "e1"),
        GUEST.public: KeyOwner("engine"),
    }
    return ListenKeys(control=control, data=data, weights=weights, keys=SERVER, allowed=allowed)


@asynccontextmanager
async def served(server: StageServer) -> AsyncIterator[StageServer]:
    """Opens it and answers its peers, and closes it."""
    server.open_sockets()
    serving = asyncio.create_task(server.serve_peers())
    yield server
    serving.cancel()
    await asyncio.wait([serving])
    server.close()


@pytest.fixture
async def server(tmp_path: Path, listen_keys: ListenKeys) -> AsyncIterator[StageServer]:
    async with served(StageServer(tmp_path / "s", listen_keys)) as server:
        yield server


def ticket_with(listen_keys: ListenKeys, **changes: Any) -> PeerKeys:
    given: dict[str, Any] = {"server": SERVER.public, "keys": E0} | changes
    return PeerKeys(
        control=listen_keys.control, data=listen_keys.data, weights=listen_keys.weights, **given
    )


@contextmanager
def link_with(peer_keys: PeerKeys, join: Join) -> Iterator[tuple[StageClient, queue.Queue[ToPeer]]]:
    inbox: queue.Queue[ToPeer] = queue.Queue()
    client = StageClient(peer_keys, join, inbox.put, heartbeat_s=0.05)
    client.start()
    try:
        yield client, inbox
    finally:
        client.close()


async def got(inbox: queue.Queue[ToPeer]) -> ToPeer:
    return await asyncio.to_thread(inbox.get, timeout=SECONDS)


async def nothing_heard(server: StageServer, seconds: float = 0.5) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await server.receive_control()


async def until_refused(server: StageServer, count: int = 1) -> None:
    assert server.curve_auth is not None
    async with asyncio.timeout(SECONDS):
        while server.curve_auth.strangers.refused < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_known_key_comes_in_by_tcp_and_by_ipc(
    server: StageServer, listen_keys: ListenKeys
) -> None:
    local = ticket_with(listen_keys, keys=E1)
    local = msgspec.structs.replace(
        local, control=f"ipc://{server.directory}/control", data=f"ipc://{server.directory}/data"
    )
    for peer_keys, name in ((ticket_with(listen_keys), "e0"), (local, "e1")):
        with link_with(peer_keys, join_of(name)) as (_, inbox):
            identity, message = await server.receive_control()
            assert message == join_of(name)
            server.send(identity, WELCOME)
            assert await got(inbox) == WELCOME


@pytest.mark.fault("no key, an unknown one, or one for another server", part="peers", by="socket")
@pytest.mark.parametrize(
    "changes",
    [
        {"keys": STRANGER},
        {"server": None, "keys": None},
        {"server": STRANGER.public},
    ],
    ids=["an unknown key", "no key", "another server's key"],
)
async def test_whoever_shows_no_known_key_is_turned_away_and_counted(
    server: StageServer, listen_keys: ListenKeys, changes: dict[str, Any]
) -> None:
    """Promise: nothing that such a peer says is heard, it is counted, and the next good one gets
    in.
    Bound: refused within 20 s; nothing heard in 0.5 s.
    """
    with link_with(ticket_with(listen_keys, **changes), join_of("e0")):
        await until_refused(server)
        await nothing_heard(server)
    with link_with(ticket_with(listen_keys), join_of("e0")):  # and the next good one gets in
        async with asyncio.timeout(SECONDS):
            await server.receive_control()


@pytest.mark.fault("nobody is there to look at keys", part="peers", by="socket")
async def test_with_nobody_to_ask_known_keys_are_refused_too(
    tmp_path: Path, listen_keys: ListenKeys
) -> None:
    """Promise: known keys are refused too: closed, not open.
    Bound: nothing heard in 1 s.
    """
    server = StageServer(tmp_path / "s", listen_keys)
    server.open_sockets()  # but `attend` does not run
    with link_with(ticket_with(listen_keys), join_of("e0")):
        await nothing_heard(server, 1.0)
    server.close()


@pytest.mark.fault("a peer is denied", part="peers", by="socket")
async def test_a_peer_that_is_denied_tries_again_and_ends_by_naming_the_reason(
    server: StageServer, listen_keys: ListenKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: it tries again, then ends by saying that the stage does not know its key.
    Bound: `DENIED_S` (30 s, here 0.5 s).
    """
    monkeypatch.setattr(links, "DENIED_S", 0.5)
    with link_with(ticket_with(listen_keys, keys=STRANGER), join_of("e0")) as (_, inbox):
        message = await got(inbox)
    assert isinstance(message, Refused)
    assert message.why.endswith(": the stage does not know this key")
    assert server.curve_auth is not None
    assert server.curve_auth.strangers.refused > 1


def slow_to_send(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Lets the stage deny a connection between two sends on it, without a look at monitors.

    Args:
        owner: what has the function `name` that is called between them.
    """

    class Late(zmq.Poller):  # made between connecting and the first send
        def __init__(self) -> None:
            time.sleep(0.5)
            super().__init__()

    between = getattr(owner, name)

    def later(*args: Any) -> Any:
        time.sleep(0.05)  # for less, libzmq does not look whether the connection is still there
        return between(*args)

    monkeypatch.setattr(zmq, "Poller", Late)
    monkeypatch.setattr(owner, name, later)


@pytest.mark.fault("a peer is denied while it sends", part="peers", by="socket")
async def test_a_peer_that_is_denied_while_it_sends_does_not_wait_for_ever(
    server: StageServer, listen_keys: ListenKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: it ends by naming the reason, as when it is denied at rest.
    Bound: `DENIED_S` (30 s, here 0.5 s).
    """
    monkeypatch.setattr(links, "DENIED_S", 0.5)
    slow_to_send(monkeypatch, StageClient, "_send_queued")
    with link_with(ticket_with(listen_keys, keys=STRANGER), join_of("e0")) as (client, inbox):
        for _ in range(3):
            client.send(join_of("e0"))
        message = await got(inbox)
    assert isinstance(message, Refused)
    assert message.why.endswith(": the stage does not know this key")


@pytest.mark.fault("a key becomes known only after the first attempt", part="peers", by="socket")
async def test_a_key_that_becomes_known_a_little_late_is_let_in(
    server: StageServer, listen_keys: ListenKeys
) -> None:
    """Promise: the peer gets in without a restart.
    Bound: 20 s.
    """
    with link_with(ticket_with(listen_keys, keys=STRANGER), join_of("e9")) as (_, inbox):
        await until_refused(server)
        listen_keys.allowed[STRANGER.public] = KeyOwner("engine", "e9")
        async with asyncio.timeout(SECONDS):
            identity, _ = await server.receive_control()
        server.send(identity, WELCOME)
        assert await got(inbox) == WELCOME


@pytest.mark.fault("a key under another's name or role", part="peers", by="socket")
@pytest.mark.parametrize(
    "keys, join",
    [
        (E0, join_of("e1")),
        (E0, join_of("e0", "learner")),
        (GUEST, join_of("e1")),
        (GUEST, join_of("l0", "learner")),
    ],
)
async def test_a_key_is_good_for_the_name_of_its_bearer_alone(
    server: StageServer, listen_keys: ListenKeys, keys: Any, join: Join
) -> None:
    """Promise: the join is refused, and the peer told why.
    Bound: at its join.
    """
    with link_with(ticket_with(listen_keys, keys=keys), join) as (_, inbox):
        with pytest.raises(WireError, match="a key that is not its own"):
            await server.receive_control()
        assert await got(inbox) == Refused(why=f"its key is not that of {join.role} {join.name}")


async def test_a_guest_may_take_any_free_name(server: StageServer, listen_keys: ListenKeys) -> None:
    with link_with(ticket_with(listen_keys, keys=GUEST), join_of("mine")):
        _, message = await server.receive_control()
    assert message == join_of("mine")


@pytest.mark.fault("another key under a known identity", part="peers", by="socket")
async def test_an_identity_cannot_be_taken_over_by_another_key(
    server: StageServer, listen_keys: ListenKeys
) -> None:
    """Promise: it is refused.
    Bound: at its first message.
    """
    with zmq.Context() as context:
        for keys, expected in ((E0, True), (E1, False)):
            with context.socket(zmq.DEALER) as dealer:
                dealer.linger = 0
                dealer.setsockopt(zmq.IDENTITY, b"same")
                guards.show_peer_keys(dealer, ticket_with(listen_keys, keys=keys))
                dealer.connect(listen_keys.control)
                number = (0 if expected else 1).to_bytes(8, "little")
                dealer.send_multipart([number, encode_message(join_of("e0" if expected else "e1"))])
                async with asyncio.timeout(SECONDS):
                    if expected:
                        await server.receive_control()
                    else:
                        with pytest.raises(WireError, match="not its own"):
                            await server.receive_control()
            await asyncio.sleep(0.1)


async def test_tokens_come_with_the_key_of_their_sender(
    server: StageServer, listen_keys: ListenKeys
) -> None:
    header = TokenBatch(engine="e0", incarnation=1, epoch=0, sequence=0, sampled=0, sent_at_s=0)
    with link_with(ticket_with(listen_keys), join_of("e0")) as (client, inbox):
        identity, _ = await server.receive_control()
        server.send(identity, WELCOME)
        await got(inbox)
        client.send_tokens(header, b"", b"")
        async with asyncio.timeout(SECONDS):
            parts, key = await server.receive_tokens()
    assert parts == [encode_message(header), b"", b""]
    assert server.admits_key(key, "engine", "e0")
    assert not server.admits_key(key, "engine", "e1")


@pytest.mark.fault(
    "the stage falls silent to an engine over a network", part="network", by="socket"
)
async def test_an_engine_whose_stage_falls_silent_joins_anew_under_another_identity(
    server: StageServer, listen_keys: ListenKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: the engine joins anew, and sends nothing of the epoch that is over.
    Bound: `SILENT_S` (4 s, here 0.3 s) without a word.
    """
    monkeypatch.setattr(links, "SILENT_S", 0.3)
    header = TokenBatch(engine="e0", incarnation=1, epoch=0, sequence=0, sampled=0, sent_at_s=0)
    with link_with(ticket_with(listen_keys), join_of("e0")) as (client, inbox):
        first, _ = await server.receive_control()
        server.send(first, WELCOME)
        assert await got(inbox) == WELCOME
        async with asyncio.timeout(SECONDS):
            while True:
                identity, message = await server.receive_control()
                if isinstance(message, Join) and identity != first:
                    break
        client.send_tokens(header, b"", b"")  # of the epoch that is over: not sent
        await asyncio.sleep(0.1)
        server.send(identity, again := msgspec.structs.replace(WELCOME, epoch=1))
        assert await got(inbox) == again
        server.send(identity, Alive(clock_s=1.0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await server.receive_tokens()


@pytest.mark.fault("an address that is every interface", part="peers", by="socket")
@pytest.mark.parametrize("host", ["0.0.0.0", "*", "[::]"])
async def test_every_interface_is_refused_unless_it_is_asked_for(
    tmp_path: Path, listen_keys: ListenKeys, host: str
) -> None:
    """Promise: the stage does not listen there unless `nodes.expose` asks for it.
    Bound: at its start.
    """
    endpoint = f"tcp://{host}:40001"
    assert endpoint_problem(endpoint, exposed=True) == ""
    wide = msgspec.structs.replace(listen_keys, control=endpoint)
    server = StageServer(tmp_path / "s", wide)
    with pytest.raises(TransportError, match=r"name one, or set nodes\.expose"):
        server.open_sockets()
    server.close()


@pytest.mark.fault("the port is taken", part="stage", by="socket")
async def test_a_taken_port_is_named(
    server: StageServer, tmp_path: Path, listen_keys: ListenKeys
) -> None:
    """Promise: the stage does not start, and names the address.
    Bound: at its start.
    """
    other = StageServer(tmp_path / "t", listen_keys)
    with pytest.raises(TransportError, match=f"cannot listen at {listen_keys.control}"):
        other.open_sockets()
    other.close()


@pytest.mark.fault("a key file that others may read", part="peers", by="file")
def test_a_key_file_is_for_its_owner_alone(tmp_path: Path, listen_keys: ListenKeys) -> None:
    """Promise: it is not used, and the cure is named.
    Bound: before anything starts.
    """
    path = write_private(tmp_path / "keys", listen_keys)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_private(path, ListenKeys) == listen_keys
    path.chmod(0o640)
    with pytest.raises(TransportError, match="others may read it: chmod 600"):
        read_private(path, ListenKeys)


def test_what_is_no_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{}")
    (tmp_path / "x").chmod(0o600)
    with pytest.raises(TransportError, match="x: not a key file of darts"):
        read_private(tmp_path / "x", PeerKeys)


def test_a_secret_is_not_printed(listen_keys: ListenKeys) -> None:
    peer_keys = ticket_with(listen_keys)
    for text in (repr(listen_keys), repr(peer_keys), str(E0), f"{peer_keys.keys}"):
        assert SERVER.secret not in text
        assert E0.secret not in text
