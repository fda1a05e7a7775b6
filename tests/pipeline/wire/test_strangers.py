"""Strangers at the stage's network ports: counted, bounded, and no harm to who holds a key."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import zmq

from pipeline.wire import client as links
from pipeline.wire import curve_auth, strangers
from pipeline.wire.codec import MAX_NETWORK_BYTES
from pipeline.wire.keys import ListenKeys, PeerKeys
from pipeline.wire.messages import Alive, Heartbeat
from pipeline.wire.server import StageServer
from pipeline.wire.strangers import ConnectionCount, StrangerWatch
from pipeline.wire.weight_transfer import FILE, fetch_weights
from tests.pipeline.wire.test_curve_auth import (
    E1,
    SECONDS,
    WELCOME,
    got,
    join_of,
    link_with,
    listen_keys,
    served,
    ticket_with,
)

__all__ = ["listen_keys"]  # a fixture

WEIGHTS = os.urandom(100_000)
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
GREETING = SIGNATURE + b"\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
LONG_COMMAND = 0x06  # of ZMTP: a command whose length has eight bytes
STRANGERS: dict[str, Callable[[bytes], bytes]] = {
    "silence": lambda _: b"",
    "half a greeting": lambda _: SIGNATURE + b"\x03",
    "garbage": lambda _: os.urandom(4096),
    "a huge length": lambda _: GREETING + struct.pack(">BQ", LONG_COMMAND, 1 << 62) + bytes(100),
    "a length beyond the limit": lambda _: (
        GREETING + struct.pack(">BQ", LONG_COMMAND, MAX_NETWORK_BYTES + 1) + bytes(100)
    ),
    "a peer's own bytes again": lambda recorded: recorded,
}


def watch_of(server: StageServer) -> StrangerWatch:
    assert server.curve_auth is not None
    return server.curve_auth.strangers


def connect(endpoint: str, source: str = "127.0.0.3") -> socket.socket:
    port = int(endpoint.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), 0.5, (source, 0))


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.fixture
async def server(
    tmp_path: Path, listen_keys: ListenKeys, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StageServer]:
    for module in (curve_auth, strangers):
        monkeypatch.setattr(module, "HANDSHAKE_MS", 1000)
    (tmp_path / "w" / "v1").mkdir(parents=True)
    (tmp_path / "w" / "v1" / FILE).write_bytes(WEIGHTS)
    async with served(StageServer(tmp_path / "s", listen_keys, [tmp_path / "w"])) as server:
        yield server


async def recorded_handshake(server: StageServer, keys: PeerKeys) -> bytes:
    """What a good peer sends until it has joined, as somebody on the way would record it."""
    found = bytearray()

    async def carry(theirs: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        host, port = keys.control.removeprefix("tcp://").split(":")
        answers, out = await asyncio.open_connection(host, int(port))

        async def pass_on(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, copy: bytearray | None
        ) -> None:
            with contextlib.suppress(OSError):
                while some := await source.read(1 << 16):
                    if copy is not None:
                        copy += some
                    sink.write(some)
            sink.close()

        await asyncio.gather(pass_on(theirs, out, found), pass_on(answers, back, None))

    async with await asyncio.start_server(carry, "127.0.0.1", 0) as between:
        port = between.sockets[0].getsockname()[1]
        way = PeerKeys(
            control=f"tcp://127.0.0.1:{port}", data=keys.data, server=keys.server, keys=keys.keys
        )
        with link_with(way, join_of("e0")):
            async with asyncio.timeout(SECONDS):
                await server.receive_control()
    with contextlib.suppress(TimeoutError):  # its join is repeated until it is welcomed
        while True:
            async with asyncio.timeout(0.5):
                await server.receive_control()
    return bytes(found)


@pytest.mark.fault("a stranger says nothing, half a word, or what a peer has said", part="peers",
                   by="socket")  # fmt: skip
@pytest.mark.parametrize("kind", STRANGERS)
async def test_what_proves_no_key_is_closed_and_counted_at_every_port(
    server: StageServer, listen_keys: ListenKeys, kind: str
) -> None:
    """Promise: its connection is closed and counted, nothing of it is heard, and the next good peer
    gets in. Bound: `HANDSHAKE_MS` (5 s, here 1 s).
    """
    good = ticket_with(listen_keys)
    said = STRANGERS[kind](await recorded_handshake(server, good) if "peer" in kind else b"")
    before = watch_of(server).refused
    held: list[socket.socket] = []
    for endpoint in (listen_keys.control, listen_keys.data, listen_keys.weights):
        for _ in range(3):
            held.append(connect(endpoint))
            held[-1].sendall(said)
    await until(lambda: watch_of(server).refused == before + len(held))
    for one in held:
        with one, contextlib.suppress(ConnectionError):
            one.setblocking(True)
            while await asyncio.to_thread(one.recv, 1 << 16):  # the stage's greeting, then an end
                pass
    with link_with(ticket_with(listen_keys, keys=E1), join_of("e1")):
        async with asyncio.timeout(SECONDS):
            assert (await server.receive_control())[1] == join_of("e1")


@pytest.mark.fault("strangers open connections until the stage has no file left", part="peers",
                   by="socket")  # fmt: skip
async def test_a_flood_shuts_the_ports_to_strangers_and_no_peer_notices(
    server: StageServer, listen_keys: ListenKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: past half of its files the stage takes connections only from machines whose peers
    have proved a key, past three quarters none, says so, and takes all again once they are closed;
    who has joined goes on, under the same connection. Bound: 6 s after the flood.
    """
    monkeypatch.setattr(links, "SILENT_S", SECONDS)  # no stage answers its heartbeats here
    share = {"now": 0.1}
    monkeypatch.setattr(strangers, "open_share", lambda: share["now"])

    def comes_in(source: str) -> bool:
        try:
            connect(listen_keys.control, source).close()
        except TimeoutError:
            return False
        return True

    assert comes_in("127.0.0.3")
    good = ticket_with(listen_keys)
    with link_with(good, join_of("e0")) as (_, inbox):
        identity, _ = await server.receive_control()
        server.send(identity, WELCOME)
        assert await got(inbox) == WELCOME
        for step, still in ((0.6, True), (0.8, False)):
            share["now"] = step
            await until(lambda: not comes_in("127.0.0.3" if still else "127.0.0.1"))  # noqa: B023
            assert comes_in("127.0.0.1") == still
            # The connection stands: a word goes out, and is echoed by it.
            server.send(identity, Alive(clock_s=step))
            async with asyncio.timeout(SECONDS):
                while True:
                    again, message = await server.receive_control()
                    assert again == identity
                    if isinstance(message, Heartbeat) and message.echo_s == step:
                        break
            if still:
                fetched = await asyncio.to_thread(
                    lambda: b"".join(fetch_weights(good, 1, len(WEIGHTS), 5.0))
                )
                assert fetched == WEIGHTS
        assert "use up the stage's files" in server.news_of_strangers()
        assert server.news_of_strangers() == ""
        share["now"] = 0.1
        await until(lambda: comes_in("127.0.0.3"))


def test_refusals_are_counted_from_what_was_accepted_and_did_not_prove_a_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(strangers, "HANDSHAKE_MS", 5000)
    count = ConnectionCount()
    for descriptor in (7, 8, 9):
        count.record(zmq.EVENT_ACCEPTED, descriptor, 0.0)
    assert count.refused(1.0) == 0
    count.record(zmq.EVENT_HANDSHAKE_SUCCEEDED, 0, 1.0)
    count.record(zmq.EVENT_DISCONNECTED, 8, 1.0)
    assert count.refused(1.0) == 0  # 8 may be the one that has proved its key
    count.record(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, 0, 1.0)
    assert count.refused(1.0) == 1
    assert count.refused(7.0) == 2
    count.record(zmq.EVENT_DISCONNECTED, 9, 8.0)
    assert count.refused(8.0) == 2
