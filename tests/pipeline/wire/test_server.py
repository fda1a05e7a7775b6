"""Real sockets in a directory of their own: joins in any order, loss, silence, safety."""

from __future__ import annotations

import asyncio
import os
import queue
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from pipeline.wire import client as links
from pipeline.wire.client import StageClient
from pipeline.wire.codec import decode_tokens, encode_message
from pipeline.wire.keys import TransportError, addresses
from pipeline.wire.messages import (
    Alive,
    ChunkHead,
    FromPeer,
    Heartbeat,
    Join,
    Shutdown,
    TokenBatch,
    ToPeer,
    Welcome,
    WireError,
)
from pipeline.wire.server import StageServer, Unreachable

JOIN = Join(protocol=1, role="engine", name="e0", slots=4)
WELCOME = Welcome(incarnation=1, epoch=0, weights_directory="/w")
SECONDS = 20.0


class Inbox:
    """What a link has received."""

    def __init__(self) -> None:
        self.queue: queue.Queue[ToPeer] = queue.Queue()

    async def get(self) -> ToPeer:
        return await asyncio.to_thread(self.queue.get, timeout=SECONDS)


@contextmanager
def link_to(directory: Path, beat_s: float = 0.02) -> Iterator[tuple[StageClient, Inbox]]:
    inbox = Inbox()
    client = StageClient(directory, JOIN, inbox.queue.put, heartbeat_s=beat_s)
    client.start()
    try:
        yield client, inbox
    finally:
        client.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[StageServer]:
    server = StageServer(tmp_path / "s")
    server.open_sockets()
    yield server
    server.close()


async def heard(server: StageServer, wanted: Callable[[FromPeer], bool]) -> tuple[bytes, Any]:
    """The next message that is wanted."""
    async with asyncio.timeout(SECONDS):
        while True:
            identity, message = await server.receive_control()
            if wanted(message):
                return identity, message


async def joined(server: StageServer) -> bytes:
    identity, message = await heard(server, lambda m: isinstance(m, Join))
    assert message == JOIN
    return identity


async def test_frames_that_lie_ready_keep_no_other_task_waiting(server: StageServer) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    with link_to(server.directory) as (client, _):
        frame = TokenBatch(engine="e0", incarnation=1, epoch=0, sequence=0, sampled=0, sent_at_s=0)
        for _ in range(200):
            client.send_tokens(frame, b"", b"")
        await server.receive_tokens()
        await asyncio.sleep(0.2)  # all of them have come
        task = asyncio.create_task(other())
        for _ in range(199):
            await server.receive_tokens()
        task.cancel()
    assert turns >= 199


async def test_a_peer_joins_a_stage_that_was_there_before_it(server: StageServer) -> None:
    with link_to(server.directory) as (_, inbox):
        server.send(await joined(server), WELCOME)
        assert await inbox.get() == WELCOME


@pytest.mark.fault("a peer is started before the stage", part="stage", by="socket")
async def test_a_peer_that_started_first_joins_when_the_stage_comes(tmp_path: Path) -> None:
    """Promise: it joins when the stage comes, without a restart.
    Bound: 20 s.
    """
    (tmp_path / "s").mkdir()
    with link_to(tmp_path / "s") as (_, inbox):
        await asyncio.sleep(0.2)  # several joins into the void
        server = StageServer(tmp_path / "s")
        server.open_sockets()
        server.send(await joined(server), WELCOME)
        assert await inbox.get() == WELCOME
    server.close()


async def test_join_is_repeated_until_welcomed_then_heartbeats_follow(server: StageServer) -> None:
    with link_to(server.directory) as (client, _):
        identity = await joined(server)
        assert await joined(server) == identity
        server.send(identity, WELCOME)
        client.set_activity("sampling", 5.0)
        _, beat = await heard(server, lambda m: isinstance(m, Heartbeat) and m.progress > 0)
        assert (beat.progress, beat.activity, beat.budget_s) == (1, "sampling", 5.0)
        server.send(identity, Alive(clock_s=7.5))
        _, beat = await heard(server, lambda m: isinstance(m, Heartbeat) and m.echo_s == 7.5)
        assert 0 <= beat.held_s < SECONDS and 0 < beat.clock_s <= time.monotonic()


async def test_a_welcome_that_is_repeated_begins_nothing_anew(server: StageServer) -> None:
    with link_to(server.directory) as (_, inbox):
        identity = await joined(server)
        again = Welcome(incarnation=1, epoch=1, weights_directory="/w")
        for message in (WELCOME, WELCOME, again, Shutdown(why="over")):
            server.send(identity, message)
        assert [await inbox.get() for _ in range(3)] == [WELCOME, again, Shutdown(why="over")]


async def test_identities_are_new_for_every_process_start(server: StageServer) -> None:
    with link_to(server.directory):
        first = await joined(server)
    with link_to(server.directory):
        _, _ = await heard(server, lambda m: isinstance(m, Join))
        async with asyncio.timeout(SECONDS):
            while (await joined(server)) == first:
                pass


async def test_tokens_arrive_whole_and_in_order(server: StageServer) -> None:
    with link_to(server.directory) as (client, _):
        for number in range(200):
            header = TokenBatch(
                engine="e0",
                incarnation=1,
                epoch=0,
                sequence=number,
                sampled=number,
                sent_at_s=0.0,
                chunks=(ChunkHead(number, 0, 0, 2, 0),),
            )
            client.send_tokens(
                header,
                np.array([5, number % 24], "<i4").tobytes(),
                np.array([-0.5, -1.0], "<f4").tobytes(),
            )
        for number in range(200):
            async with asyncio.timeout(SECONDS):
                header, tokens, _ = decode_tokens((await server.receive_tokens())[0], 24)
            assert header.sequence == number
            assert tokens.tolist() == [5, number % 24]


async def test_close_sends_what_is_queued(server: StageServer) -> None:
    with link_to(server.directory) as (client, _):
        server.send(await joined(server), WELCOME)
        for number in range(50):
            client.send(Heartbeat(progress=1000 + number, activity="last words", budget_s=0.0))
    for number in range(50):
        _, beat = await heard(server, lambda m: isinstance(m, Heartbeat) and m.progress >= 1000)
        assert beat.progress == 1000 + number


@pytest.mark.fault("the stage sends to a process that is gone", part="stage", by="socket")
async def test_sending_to_a_peer_that_is_gone_or_never_was_is_unreachable(
    server: StageServer,
) -> None:
    """Promise: the send fails and names it.
    Bound: at the send, 0.1 s after its end.
    """
    with pytest.raises(Unreachable):
        server.send(b"nobody", WELCOME)
    with link_to(server.directory):
        identity = await joined(server)
    await asyncio.sleep(0.1)
    with pytest.raises(Unreachable, match="e0/"):
        server.send(identity, WELCOME)


@pytest.mark.fault("the stage falls silent", part="stage", by="socket")
async def test_a_silent_stage_leads_to_a_shutdown_once(
    server: StageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: a peer is told once to shut down, with the reason.
    Bound: `ORPHAN_S` (120 s, here 0.2 s) without a word.
    """
    monkeypatch.setattr(links, "ORPHAN_S", 0.2)
    with link_to(server.directory) as (_, inbox):
        server.send(await joined(server), WELCOME)
        assert await inbox.get() == WELCOME
        assert await inbox.get() == Shutdown(why="the stage is silent")
        await asyncio.sleep(0.2)
        assert inbox.queue.empty()


@pytest.mark.fault("a command of the stage is lost", part="wire", by="socket")
async def test_a_command_that_was_lost_shuts_the_peer_down(server: StageServer) -> None:
    """Promise: the peer is told to shut down, with the number that was lost.
    Bound: at the next command.
    """
    with link_to(server.directory) as (_, inbox):
        identity = await joined(server)
        server.send(identity, WELCOME)
        server._sent[identity] += 1  # one goes missing
        server.send(identity, Shutdown(why="later"))
        assert await inbox.get() == WELCOME
        assert await inbox.get() == Shutdown(why="command 1 of the stage was lost: 2 came")


@contextmanager
def stranger(server: StageServer) -> Iterator[zmq.Socket[bytes]]:
    """A socket that speaks for itself."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.setsockopt(zmq.IDENTITY, b"stranger")
        socket.connect(addresses(server.directory)[0])
        yield socket


@pytest.mark.fault("frames that are no messages", part="wire", by="socket")
async def test_frames_that_are_no_messages_are_counted_and_the_next_one_is_read(
    server: StageServer,
) -> None:
    """Promise: each is an error that names its sender, and the next good one is read.
    Bound: at that frame.
    """
    good = encode_message(JOIN)

    def number(n: int) -> bytes:
        return n.to_bytes(8, "little")

    with stranger(server) as socket:
        for frames in ([b"x"], [b"short", good], [number(0), b"\xc1"], [number(1), b"\x93", b""]):
            socket.send_multipart(frames)
        socket.send_multipart([number(1), good])
        for _ in range(4):
            with pytest.raises(WireError) as refused:
                async with asyncio.timeout(SECONDS):
                    await server.receive_control()
            assert refused.value.sender == b"stranger"
        async with asyncio.timeout(SECONDS):
            assert await server.receive_control() == (b"stranger", JOIN)


@pytest.mark.fault("a peer's control message is lost", part="wire", by="socket")
async def test_a_gap_in_the_control_sequence_is_noticed(server: StageServer) -> None:
    """Promise: the gap is an error with both numbers, and the message after it is read.
    Bound: at the next message.
    """
    with stranger(server) as socket:
        for number in (0, 2, 3):
            socket.send_multipart([number.to_bytes(8, "little"), encode_message(JOIN)])
        async with asyncio.timeout(SECONDS):
            await server.receive_control()
            with pytest.raises(WireError, match="control message 2, expected 1"):
                await server.receive_control()
            await server.receive_control()


async def test_only_the_owner_may_enter_the_directory(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o755)
    server = StageServer(tmp_path / "s")
    server.open_sockets()
    assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == 0o700
    server.close()
    assert list((tmp_path / "s").iterdir()) == []


def test_a_path_too_long_for_a_socket_is_refused_by_name(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 120)
    with pytest.raises(TransportError, match="longer than a Unix socket path may be"):
        StageClient(directory, JOIN, lambda m: None)
    server = StageServer(directory)
    with pytest.raises(TransportError, match="x: longer than"):
        server.open_sockets()
    server.close()


async def test_a_closed_link_writes_into_no_file_that_came_after_it(
    server: StageServer, tmp_path: Path
) -> None:
    with link_to(server.directory) as (client, _):
        await joined(server)
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    os.dup2(other, client._wake)  # the number is another file's now
    client.send(Heartbeat(progress=1, activity="late", budget_s=0.0))
    client.close()
    for descriptor in {other, client._wake}:
        os.close(descriptor)
    assert (tmp_path / "other").read_bytes() == b""


def test_many_threads_may_send_at_once(tmp_path: Path) -> None:
    async def everything() -> None:
        server = StageServer(tmp_path / "s")
        server.open_sockets()
        with link_to(server.directory) as (client, _):
            server.send(await joined(server), WELCOME)

            def chatter(start: int) -> None:
                for number in range(100):
                    client.send(Heartbeat(progress=start + number, activity="many", budget_s=0.0))

            threads = [threading.Thread(target=chatter, args=(1000 * i,)) for i in (1, 2, 3, 4)]
            for thread in threads:
                thread.start()
            seen: set[int] = set()
            while len(seen) < 400:
                _, beat = await heard(
                    server, lambda m: isinstance(m, Heartbeat) and m.activity == "many"
                )
                seen.add(beat.progress)
            for thread in threads:
                thread.join()
        server.close()

    asyncio.run(everything())


HUNG_PEER = """
import sys, time
from pathlib import Path
from pipeline.wire.client import StageClient
from pipeline.wire.messages import PROTOCOL, Join
join = Join(protocol=PROTOCOL, role="engine", name="e0", slots=1)
StageClient(Path(sys.argv[1]), join, lambda message: None, heartbeat_s=0.1, hung_s=0.5).start()
time.sleep(60)
"""


@pytest.mark.fault(
    "a peer whose loop hangs is told to end, and no launcher watches it", part="peers", by="process"
)
async def test_a_process_that_does_not_hear_that_it_is_to_end_is_ended_by_its_link(
    server: StageServer,
) -> None:
    """Promise: its connection's thread ends the process, if there was a reason to end it.
    Bound: `HUNG_S` (20 s, here 0.5 s) after the word.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HUNG_PEER, str(server.directory)
    )
    try:
        identity, _ = await heard(server, lambda m: isinstance(m, Join))
        server.send(identity, WELCOME)
        server.send(identity, Shutdown(why=""))
        await asyncio.sleep(1.0)
        assert process.returncode is None, "no fault: it may take its time"
        server.send(identity, Shutdown(why="it stands still"))
        async with asyncio.timeout(SECONDS):
            assert await process.wait() == links.HUNG
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.fault("the temporary directory takes no sockets", part="disk", by="file")
async def test_a_place_that_takes_no_socket_is_named_with_the_cure(tmp_path: Path) -> None:
    """Promise: the stage does not start, and names the place and TMPDIR. Bound: at its start."""
    (tmp_path / "s" / "control").mkdir(parents=True)  # as little of a socket as some disks make
    server = StageServer(tmp_path / "s")
    with pytest.raises(TransportError, match=f"no place for sockets: {tmp_path}/s: .*set TMPDIR"):
        server.open_sockets()
    server.close()
