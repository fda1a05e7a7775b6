"""Hostile peers at real sockets: refused and counted, while the good one beside them goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from pipeline.config.load import load
from pipeline.config.schema import Plugin, WorkersConfig
from pipeline.data import eval_sets
from pipeline.data.dataset import load_train
from pipeline.data.tokenizer import Tokenizer
from pipeline.stage import build
from pipeline.stage.stage import Parts, StageProcess
from pipeline.system.run_folder import RunFolder
from pipeline.wire import curve_auth
from pipeline.wire.client import StageClient
from pipeline.wire.codec import MAX_REPORT_BYTES, decode_to_peer, decode_tokens, encode_message
from pipeline.wire.keys import addresses
from pipeline.wire.messages import (
    PROTOCOL,
    GroupTrained,
    Heartbeat,
    Join,
    Manifest,
    Published,
    Refused,
    Shutdown,
    ToPeer,
    WeightsLoaded,
    Welcome,
    WireError,
)
from pipeline.wire.server import StageServer
from pipeline.workers.pool import RewardPool
from tests.paths import ROOT
from tests.pipeline.wire.test_messages import batch
from tests.security.mutants import COMMANDS, REPORTS, VOCABULARY, mutant, mutant_parts

FRAMES = 2000
SECONDS = 30.0
NONE = (b"", b"")


def number(n: int) -> bytes:
    return n.to_bytes(8, "little")


class Peer:
    """A good peer: a link, and what it has received."""

    def __init__(self, directory: Path, join: Join) -> None:
        self.inbox: queue.Queue[ToPeer] = queue.Queue()
        self.client = StageClient(directory, join, self.inbox.put, heartbeat_s=0.05)
        self.client.start()

    async def get(self, kind: type[Any]) -> Any:
        """The next message of this kind."""
        async with asyncio.timeout(SECONDS):
            while True:
                with contextlib.suppress(queue.Empty):
                    if isinstance(found := self.inbox.get_nowait(), kind):
                        return found
                await asyncio.sleep(0.01)


@contextlib.contextmanager
def peer(directory: Path, name: str, **other: Any) -> Iterator[Peer]:
    made = Peer(directory, Join(protocol=PROTOCOL, role="engine", name=name, slots=4, **other))
    try:
        yield made
    finally:
        made.client.close()


@contextlib.contextmanager
def raw(directory: Path, identity: bytes = b"stranger") -> Iterator[tuple[Any, Any]]:
    """A DEALER and a PUSH that say whatever they like."""
    control, data = addresses(directory)
    with zmq.Context() as context:
        dealer, push = context.socket(zmq.DEALER), context.socket(zmq.PUSH)
        with dealer, push:
            for socket in (dealer, push):
                socket.linger = 2000
            dealer.setsockopt(zmq.IDENTITY, identity)
            dealer.connect(control)
            push.connect(data)
            yield dealer, push


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[StageServer]:
    server = StageServer(tmp_path / "s")
    server.open_sockets()
    yield server
    server.close()


@pytest.mark.fault("garbage at the stage's sockets", part="wire", by="socket")
async def test_fuzzed_frames_at_the_sockets_are_refused_and_the_good_peer_goes_on(
    server: StageServer,
) -> None:
    """Promise: it is refused under the name of its sender alone, and every frame and heartbeat of
    the good peer beside it arrives.
    Bound: 30 s for each frame to come.
    """
    rng, refused, heard = random.Random(3), 0, 0
    senders: set[bytes] = set()
    with peer(server.directory, "e0") as good, raw(server.directory) as (dealer, push):
        for n in range(FRAMES // 2):
            frames = [number(rng.choice((n, 0))), mutant(rng.choice(REPORTS), rng)]
            dealer.send_multipart(rng.choice((frames, frames * 2, frames[:1], [b""])))
            push.send_multipart(mutant_parts(rng) or [b""])
            good.client.send_tokens(batch(engine="e0", sequence=n), *NONE)
        for n in range(40):
            good.client.send(Heartbeat(progress=n, activity="well", budget_s=0.0))
        seen: list[int] = []
        while len(seen) < FRAMES // 2:
            async with asyncio.timeout(SECONDS):
                parts, _ = await server.receive_tokens()
            try:
                header, _, _ = decode_tokens(parts, VOCABULARY)
            except WireError:
                refused += 1
                continue
            if header.engine == "e0" and header.sent_at_s == 0.0 and not header.chunks:
                seen.append(header.sequence)
        while heard < 40:
            try:
                async with asyncio.timeout(SECONDS):
                    identity, message = await server.receive_control()
            except WireError as error:
                senders.add(error.sender)
                refused += 1
                continue
            heard += identity.startswith(b"e0/") and isinstance(message, Heartbeat)
    assert set(range(FRAMES // 2)) <= set(seen)
    assert senders == {b"stranger"}
    assert refused > FRAMES // 4


@pytest.mark.fault("a frame over the socket's limit", part="wire", by="socket")
async def test_a_frame_over_the_sockets_limit_never_arrives_and_costs_nobody_else_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: it never arrives, and the frames of the good peer do.
    Bound: 30 s.
    """
    monkeypatch.setattr(curve_auth, "MAX_DATA_BYTES", 1 << 16)
    server = StageServer(tmp_path / "s")
    server.open_sockets()
    with peer(server.directory, "e0") as good, raw(server.directory) as (dealer, push):
        for _ in range(3):
            dealer.send_multipart([number(0), b"\0" * (1 << 17)])
            push.send_multipart([b"\0" * (1 << 17)])
        good.client.send_tokens(batch(engine="e0"), *NONE)
        async with asyncio.timeout(SECONDS):
            assert len((await server.receive_tokens())[0]) == 3
            identity, message = await server.receive_control()
        assert identity.startswith(b"e0/")
        assert isinstance(message, Join)
    server.close()


@pytest.mark.fault("a control frame over its limit", part="wire", by="socket")
async def test_a_control_frame_over_its_limit_is_refused_unread(server: StageServer) -> None:
    """Promise: it is refused unread.
    Bound: at that frame.
    """
    with raw(server.directory) as (dealer, _):
        dealer.send_multipart([number(0), b"\0" * (MAX_REPORT_BYTES + 1)])
        with pytest.raises(WireError, match="over the limit"):
            async with asyncio.timeout(SECONDS):
                await server.receive_control()


@pytest.mark.fault("garbage from the stage at a peer", part="wire", by="socket")
async def test_a_peer_leaves_in_order_when_a_command_does_not_decode(tmp_path: Path) -> None:
    """Promise: each such command is a shutdown with its number and reason, and the next good one is
    read.
    Bound: 30 s for each.
    """
    rng = random.Random(5)
    directory = tmp_path / "s"
    directory.mkdir()
    control, data = addresses(directory)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(control)
        with context.socket(zmq.PULL) as pull, peer(directory, "e0") as good:
            pull.bind(data)
            identity = await asyncio.to_thread(lambda: router.recv_multipart()[0])
            for n in range(200):
                frames = rng.choice(
                    ([number(n)], [b"", b""], [number(n), rng.choice(COMMANDS), b""])
                )
                router.send_multipart([identity, *frames])
            router.send_multipart([identity, number(200), mutant(COMMANDS[0], rng) + b"\xc1"])
            for n in range(201):
                why = (await good.get(Shutdown)).why
                assert why.startswith(f"command {n} of the stage was lost: ")
            router.send_multipart([identity, number(201), encode_message(Shutdown(why="well"))])
            assert (await good.get(Shutdown)).why == "well"


# --- the stage itself ------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[tuple[StageProcess, Parts]]:
    """A stage in this process, serving its sockets; engines and learner are played."""
    config = load(
        ROOT / "configs" / "quickstart.yaml",
        [
            "engine.kind=simulated",
            "data.held_out=4",
            "timeouts.heartbeat_s=60",
            "metrics.tensorboard=false",
        ],
    )
    run = RunFolder(folder / "run")
    run.make_folders()
    (weights := folder / "weights").mkdir()
    tokenizer = Tokenizer(Path(config.model))
    train = load_train(config.data, tokenizer, config.sampling.max_tokens)
    held_out = eval_sets.load_eval_sets(config, tokenizer)
    parts = Parts(
        config=config,
        run=run,
        server=StageServer(folder / "s"),
        coordinator=build.coordinator(config, tokenizer, train, held_out),
        tokenizer=tokenizer,
        data={"train": train, "eval": held_out.data},
        incarnation=1,
        weights=weights,
        spare_weights=folder / "spare",
        resumed_step=-1,
    )
    parts.server.open_sockets()
    async with RewardPool(Plugin(name="exact"), WorkersConfig()) as pool:
        made = StageProcess(parts, pool, lambda line: None)
        serving = asyncio.create_task(made.run())
        yield made, parts
        made.halt("the test is over")
        async with asyncio.timeout(SECONDS):
            assert await serving == "the test is over"
    parts.server.close()


def live(run: RunFolder) -> dict[str, Any]:
    return json.loads(run.live.read_text())


async def until(claim: Any) -> None:
    async with asyncio.timeout(SECONDS):
        while not claim():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.fault("peers that lie, impersonate and flood", part="wire", by="socket")
async def test_a_stage_outlives_what_hostile_peers_send_and_loses_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise: the stage goes on without an error and without the liar, counts what it refused,
    logs at most 15 lines of it, and writes records that are JSON.
    Bound: 30 s for each claim.
    """
    rng = random.Random(11)
    async with stage(tmp_path) as (made, parts):
        core, run, sockets = parts.coordinator.core, parts.run, parts.server.directory
        with (
            peer(sockets, "e0") as good,
            peer(sockets, "e1") as liar,
            peer(sockets, "l0", rank=0) as impostor,
            raw(sockets) as (dealer, push),
        ):
            await good.get(Welcome)
            await liar.get(Welcome)
            assert "name of a learner rank" in (await impostor.get(Refused)).why
            manifest = Manifest(
                version=5, directory="/etc", bytes=1, checksum="", probe=[], logprobs={}
            )
            liar.client.send(Published(manifest=manifest))
            liar.client.send(GroupTrained(step=0, group=0, tokens=1.0))
            await until(lambda: made._peers.rejected_frames.counts.get("role") == 2)
            assert core.version == -1
            for _ in range(20):  # with a good header
                bad = msgspec.structs.replace(batch(engine="e1"), sampled=1)
                liar.client.send_tokens(bad, b"odd", b"")
            why = (await liar.get(Shutdown)).why
            assert why.startswith("its frames are not to be believed; the last: ")
            for n in range(300):
                # Under its own name: on ipc:// a name is not proved, CURVE binds it to a key.
                report, *frames = (
                    part.replace(b"e0", b"e1")
                    for part in (mutant(rng.choice(REPORTS), rng), *mutant_parts(rng))
                )
                dealer.send_multipart([number(n), report])
                push.send_multipart(frames)
            good.client.send(WeightsLoaded(version=0, gaps={"1.0": float("nan")}))
            good.client.send_tokens(batch(engine="e0"), *NONE)
            await until(lambda: parts.coordinator.scheduler.engines["e0"].next_sequence == 1)
            await until(lambda: run.live.exists() and live(run)["refused"].get("tokens", 0) > 100)
            assert "e1" not in parts.coordinator.scheduler.engines
            assert live(run)["refused"]["control"] > 100
            assert not made.error
        told = [
            r
            for r in caplog.records
            if "refused: " in r.getMessage() and "frame of" in r.getMessage()
        ]
        assert 1 <= len(told) <= 15
    for line in run.metrics.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are no JSON


@pytest.mark.fault(
    "a peer that says of itself that it has just joined, and joins again", part="wire", by="socket"
)
async def test_a_peer_that_calls_itself_joined_joins_once_in_an_epoch(tmp_path: Path) -> None:
    """Promise: the repeated join is welcomed and changes nothing: the engine keeps its state.
    Bound: 30 s for each welcome.
    """
    join = Join(protocol=PROTOCOL, role="engine", name="e0", slots=4)
    beat = Heartbeat(progress=1, activity="joined", budget_s=0.0)
    async with stage(tmp_path) as (_, parts):
        with raw(parts.server.directory, b"e0/1/aa") as (dealer, _):
            engines = parts.coordinator.scheduler.engines
            dealer.send_multipart([number(0), encode_message(join)])
            await until(lambda: "e0" in engines)
            first = engines["e0"]
            dealer.send_multipart([number(1), encode_message(beat)])
            dealer.send_multipart([number(2), encode_message(join)])
            welcomes = 0
            while welcomes < 2:
                async with asyncio.timeout(SECONDS):
                    frames = await asyncio.to_thread(dealer.recv_multipart)
                welcomes += isinstance(decode_to_peer(frames[-1]), Welcome)
            assert engines["e0"] is first
