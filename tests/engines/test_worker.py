"""A real worker process, real sockets; the test plays the stage."""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import TypeVar

import numpy as np
import psutil
import pytest
import xxhash

from engines.backends.simulated import SimulatedEngine
from engines.chunker import MOST_CHUNKS
from engines.server import Worker
from engines.weights_probe import LOAD_STAGES
from pipeline.config.timeouts import TimeoutsConfig
from pipeline.wire.codec import decode_tokens
from pipeline.wire.fields import Drawing
from pipeline.wire.messages import (
    AbortLegs,
    Alive,
    ChunkHead,
    FromPeer,
    Generate,
    Join,
    LoadWeights,
    Manifest,
    Request,
    Shutdown,
    Spans,
    TokenBatch,
    ToPeer,
    WeightsFailed,
    WeightsLoaded,
    Welcome,
)
from pipeline.wire.server import StageServer, Unreachable
from tests.paths import ROOT

MODEL = ROOT / "models" / "chain-sums"
VOCABULARY = 24
_M = TypeVar("_M", bound=FromPeer)


def manifest_of(version: int, **changes: object) -> Manifest:
    content = (MODEL / "model.safetensors").read_bytes()
    fields: dict[str, object] = {
        "version": version,
        "directory": str(MODEL),
        "bytes": len(content),
        "checksum": xxhash.xxh3_128_hexdigest(content),
        "probe": [2 + i % 22 for i in range(32)],
        "logprobs": {"1.0": [-1.0] * 31, "0.7": [-1.0] * 31},
    }
    return Manifest(**(fields | changes))  # pyright: ignore[reportArgumentType]


def request_of(trajectory: int, leg: int = 0, prefix: list[int] | None = None, tokens: int = 100):
    return Request(
        trajectory=trajectory,
        leg=leg,
        prompt=np.asarray([5, 6, 7], "<i4").tobytes(),
        prefix=np.asarray(prefix or [], "<i4").tobytes(),
        max_tokens=tokens,
        drawing=Drawing(),
        seed=1000 * trajectory + leg,
    )


class Stage:
    """The few things of a stage that a worker sees."""

    def __init__(self, server: StageServer, process: "Popen[bytes]") -> None:
        self.server, self.process = server, process
        self.identity = b""
        self.frames: list[TokenBatch] = []
        self.tokens: dict[tuple[int, int], list[int]] = {}
        self.ended: dict[tuple[int, int], ChunkHead] = {}
        self.offsets: dict[tuple[int, int], int] = {}
        self.control: list[FromPeer] = []

    async def hear(self) -> None:
        while True:
            identity, message = await self.server.receive_control()
            self.control.append(message)
            if isinstance(message, Join):
                self.identity = identity

    async def read(self) -> None:
        while True:
            header, tokens, _ = decode_tokens((await self.server.receive_tokens())[0], VOCABULARY)
            self.frames.append(header)
            start = 0
            for chunk in header.chunks:
                key = (chunk.trajectory, chunk.leg)
                assert key not in self.ended, "a leg ended twice"
                assert chunk.offset == self.offsets.setdefault(key, chunk.offset)
                self.tokens.setdefault(key, []).extend(tokens[start : start + chunk.count].tolist())
                self.offsets[key] += chunk.count
                start += chunk.count
                if chunk.finish:
                    self.ended[key] = chunk

    async def keep_alive(self) -> None:
        while True:
            await asyncio.sleep(1)
            if self.identity and self.process.poll() is None:
                with suppress(Unreachable):  # it may end just now
                    self.server.send(self.identity, Alive())

    async def heard(self, kind: type[_M], within_s: float = 10.0) -> _M:
        async with asyncio.timeout(within_s):
            while True:
                for message in self.control:
                    if isinstance(message, kind):
                        self.control.remove(message)
                        return message
                assert self.process.poll() is None, f"the worker ended: {self.process.returncode}"
                await asyncio.sleep(0.005)

    async def until_ended(self, *keys: tuple[int, int], within_s: float = 10.0) -> None:
        async with asyncio.timeout(within_s):
            while not all(key in self.ended for key in keys):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def welcome(self, epoch: int) -> None:
        self.server.send(self.identity, Welcome(incarnation=1, epoch=epoch, weights_directory=""))

    async def load(self, version: int) -> WeightsLoaded:
        self.server.send(self.identity, LoadWeights(manifest=manifest_of(version)))
        return await self.heard(WeightsLoaded)

    def generate(self, *requests: Request) -> None:
        self.server.send(self.identity, Generate(requests=requests))


@contextmanager
def worker_of(tmp_path: Path, kind: str) -> "Iterator[Popen[bytes]]":
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {MODEL}\nengine: {{kind: {kind}, slots: 16, chunk_tokens: 8}}\n")
    command = [sys.executable, "-m", "engines.worker", "--name", "e0"]
    command += ["--stage", str(tmp_path / "s"), "--config", str(config)]
    process = Popen(command, cwd=ROOT, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@asynccontextmanager
async def stage_of(tmp_path: Path, kind: str, within_s: float = 15.0) -> AsyncIterator[Stage]:
    """A worker that has joined and been welcomed."""
    server = StageServer(tmp_path / "s")
    server.open_sockets()
    with worker_of(tmp_path, kind) as process:
        stage = Stage(server, process)
        tasks = [asyncio.create_task(work()) for work in (stage.hear, stage.read, stage.keep_alive)]
        try:
            await stage.heard(Join, within_s)
            stage.welcome(epoch=1)
            yield stage
            for task in tasks:
                assert not task.done() or task.exception() is None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.close()


async def test_legs_stream_to_their_ends_and_every_token_is_counted(tmp_path: Path):
    async with stage_of(tmp_path, "simulated") as stage:
        loaded = await stage.load(4)
        assert loaded == WeightsLoaded(version=4, gaps={"1.0": 0.0, "0.7": 0.0})
        stage.generate(*(request_of(i) for i in range(12)))
        await stage.until_ended(*((i, 0) for i in range(12)))
        assert {chunk.finish for chunk in stage.ended.values()} <= {"stop", "length"}
        chunks = [chunk for frame in stage.frames for chunk in frame.chunks]
        assert {chunk.version for chunk in chunks} == {4}
        assert all(chunk.count >= 8 or chunk.finish for chunk in chunks)
        assert [frame.sequence for frame in stage.frames] == list(range(len(stage.frames)))
        assert stage.frames[-1].sampled == sum(map(len, stage.tokens.values()))
        stamps = {t.trajectory: t for frame in stage.frames for t in frame.times}
        assert set(stamps) == set(range(12)), "each leg that ended says when it was worked on"
        now = time.monotonic()
        assert all(0 < t.begun_s <= t.first_s <= t.last_s <= now for t in stamps.values())
        [load] = [m for m in stage.control if isinstance(m, Spans)]
        assert [span.what for span in load.spans] == list(LOAD_STAGES)
        assert {span.of for span in load.spans} == {(4,)}


async def test_without_a_learner_it_samples_with_the_weights_that_it_began_with(tmp_path: Path):
    async with stage_of(tmp_path, "simulated") as stage:
        stage.server.send(stage.identity, LoadWeights(manifest=None))
        assert await stage.heard(WeightsLoaded) == WeightsLoaded(version=0, gaps={}, proved=True)
        stage.generate(request_of(1))
        await stage.until_ended((1, 0))
        chunks = [chunk for frame in stage.frames for chunk in frame.chunks]
        assert {chunk.version for chunk in chunks} == {0}
        await stage.load(1)
        stage.server.send(stage.identity, LoadWeights(manifest=None))
        failed = await stage.heard(WeightsFailed)
        assert failed.why == "weights of version 1 have been loaded over the model's own"


async def test_aborted_and_resumed_legs_go_on_at_their_offset(tmp_path: Path):
    async with stage_of(tmp_path, "simulated") as stage:
        await stage.load(1)
        stage.generate(request_of(1), request_of(2, tokens=400))
        stage.server.send(stage.identity, AbortLegs(legs=((1, 0), (99, 0))))
        await stage.until_ended((1, 0), within_s=1)
        assert stage.ended[1, 0].finish == "abort"
        held = stage.tokens[1, 0]
        stage.generate(request_of(1, leg=1, prefix=[*held, 9, 9]))
        await stage.until_ended((1, 1), (2, 0))
        assert stage.offsets[1, 1] == len(held) + 2 + len(stage.tokens[1, 1])


async def test_new_weights_end_chunks_and_later_ones_have_the_new_version(tmp_path: Path):
    async with stage_of(tmp_path, "simulated") as stage:
        await stage.load(1)
        stage.generate(*(request_of(i) for i in range(16)))
        await asyncio.sleep(0.15)
        await stage.load(2)
        await stage.until_ended(*((i, 0) for i in range(16)))
        versions = [c.version for frame in stage.frames for c in frame.chunks]
        assert versions == sorted(versions)
        assert set(versions) == {1, 2}


async def test_an_idle_worker_sends_empty_batches_in_sequence(tmp_path: Path):
    async with stage_of(tmp_path, "simulated") as stage:
        await asyncio.sleep(2.5)
        assert len(stage.frames) >= 2
        assert [frame.sequence for frame in stage.frames] == list(range(len(stage.frames)))


async def test_a_second_welcome_forgets_all_legs_and_counts_from_zero(tmp_path: Path):
    async with stage_of(tmp_path, "simulated") as stage:
        await stage.load(1)
        stage.generate(*(request_of(i, tokens=400) for i in range(8)))
        await asyncio.sleep(0.1)
        stage.welcome(epoch=2)
        stage.generate(request_of(50))
        await stage.until_ended((50, 0))
        second = [frame for frame in stage.frames if frame.epoch == 2]
        assert [frame.sequence for frame in second] == list(range(len(second)))
        assert {c.trajectory for frame in second for c in frame.chunks} == {50}
        assert second[-1].sampled == len(stage.tokens[50, 0])


@pytest.mark.fault("weights whose checksum is wrong", part="engines", by="process")
async def test_weights_that_do_not_match_their_checksum_are_reported_and_not_loaded(tmp_path: Path):
    """Promise: the engine says so with the checksum, loads nothing, and goes on with the version
    that it has.
    Bound: reported within 10 s.
    """
    async with stage_of(tmp_path, "simulated") as stage:
        await stage.load(1)
        stage.server.send(stage.identity, LoadWeights(manifest=manifest_of(2, checksum="0" * 32)))
        failed = await stage.heard(WeightsFailed)
        assert failed.version == 2
        assert "xxh3_128" in failed.why
        stage.generate(request_of(1))
        await stage.until_ended((1, 0))
        assert stage.ended[1, 0].version == 1


@pytest.mark.fault("a batch of tokens over the frame limit", part="wire", by="process")
async def test_more_ends_at_once_than_a_frame_takes_arrive_in_several(tmp_path: Path):
    """Promise: 20,000 legs that end in one moment would be a header over its limit: the engine
    splits it, and every leg ends once, with its times, and without a gap.
    Bound: 60 s.
    """
    async with stage_of(tmp_path, "simulated") as stage:
        await stage.load(1)
        legs = 20_000
        for start in range(0, legs, 4000):
            stage.generate(*(request_of(i, tokens=400) for i in range(start, start + 4000)))
        await stage.until_ended((0, 0), within_s=60)  # all have been taken in before
        stage.server.send(stage.identity, AbortLegs(legs=tuple((i, 0) for i in range(legs))))
        await stage.until_ended(*((i, 0) for i in range(legs)), within_s=60)
        assert max(len(frame.chunks) for frame in stage.frames) == MOST_CHUNKS
        assert [frame.sequence for frame in stage.frames] == list(range(len(stage.frames)))
        assert sum(len(frame.times) for frame in stage.frames) == legs


@pytest.mark.fault("a request reaches an engine without weights", part="engines", by="process")
async def test_a_request_before_the_first_weights_ends_as_an_error(tmp_path: Path):
    """Promise: it ends as an error.
    Bound: 10 s.
    """
    async with stage_of(tmp_path, "simulated") as stage:
        stage.generate(request_of(1))
        await stage.until_ended((1, 0))
        assert stage.ended[1, 0].finish == "error"


async def test_a_shutdown_sends_what_was_sampled_and_exits_in_order(tmp_path: Path):
    async with stage_of(tmp_path, "simulated") as stage:
        await stage.load(1)
        stage.generate(*(request_of(i, tokens=400) for i in range(8)))
        await asyncio.sleep(0.1)
        stage.server.send(stage.identity, Shutdown())
        await stage.until_ended(*((i, 0) for i in range(8)), within_s=3)
        assert stage.frames[-1].sampled == sum(map(len, stage.tokens.values()))
        assert await asyncio.to_thread(stage.process.wait, 5) == 0


@pytest.mark.fault("Ctrl-C reaches an engine's worker", part="people", by="process")
async def test_sigterm_ends_it_and_sigint_does_not(tmp_path: Path):
    """Promise: it goes on, for the launcher decides; SIGTERM ends it with status 0.
    Bound: 5 s after SIGTERM.
    """
    async with stage_of(tmp_path, "simulated") as stage:
        stage.process.send_signal(signal.SIGINT)
        await stage.load(1)
        stage.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(stage.process.wait, 5) == 0


def members(group: int) -> list[str]:
    found: list[str] = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.long
@pytest.mark.fault(
    "an engine's worker is killed beside vLLM's own processes", part="engines", by="process"
)
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_no_process_of_vllm_outlives_a_killed_worker(tmp_path: Path):
    """Promise: they end too.
    Bound: 5 s.
    """
    async with stage_of(tmp_path, "vllm", within_s=180) as stage:
        stage.server.send(stage.identity, LoadWeights(manifest=manifest_of(1)))
        loaded = await stage.heard(WeightsLoaded)
        assert set(loaded.gaps) == {"1.0", "0.7"}
        stage.generate(*(request_of(i) for i in range(8)))
        await stage.until_ended(*((i, 0) for i in range(8)))
        assert stage.frames[-1].sampled == sum(map(len, stage.tokens.values()))
        assert len(members(stage.process.pid)) >= 2
        stage.generate(*(request_of(i, tokens=400) for i in range(10, 26)))
        stage.process.kill()
        async with asyncio.timeout(5):
            while members(stage.process.pid):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


class Declared:
    """A link that notes how long each activity may stand still."""

    def __init__(self) -> None:
        self.budgets: dict[str, float] = {}

    def start(self) -> None: ...
    def send(self, message: FromPeer) -> None: ...
    def send_tokens(self, header: TokenBatch, tokens: bytes, logprobs: bytes) -> None: ...
    def close(self) -> None: ...

    def set_activity(self, activity: str, budget_s: float) -> None:
        self.budgets[activity] = budget_s


async def test_work_may_stand_still_for_a_little_longer_than_the_stage_lets_it():
    engine, client = SimulatedEngine(slots=2, vocabulary=VOCABULARY), Declared()
    heard: list[Callable[[ToPeer], None]] = []

    def connect(join: Join, receive: Callable[[ToPeer], None]) -> Declared:
        heard.append(receive)
        return client

    timeouts = TimeoutsConfig(load_s=700.0, sampling_s=200.0)
    info = await engine.start()
    worker = Worker(engine, info, connect, name="e0", chunk_tokens=8, timeouts=timeouts)
    for message in (
        Welcome(incarnation=1, epoch=1, weights_directory=""),
        Generate(requests=(request_of(1),)),
        LoadWeights(manifest=manifest_of(1)),
        Generate(requests=(request_of(2),)),
        Shutdown(why=""),
    ):
        heard[0](message)
    assert await worker.run() == 0
    assert client.budgets == {"idle": 0.0, "sampling": 210.0, "loading weights": 710.0}


@pytest.mark.fault("weights are published faster than an engine loads", part="engines", by="direct")
async def test_the_newest_version_is_loaded_and_those_before_it_are_passed_over(tmp_path: Path):
    """Promise: an engine that is behind loads the version that was asked for last, and the file
    that it reads stays until it has been proved, also where the learner has removed it.
    Bound: at the next load.
    """
    content = (MODEL / "model.safetensors").read_bytes()
    for version in (1, 2, 3):
        (tmp_path / f"v{version}").mkdir()
        (tmp_path / f"v{version}" / "model.safetensors").write_bytes(content)
    read: list[int] = []

    class Slow(SimulatedEngine):
        async def load_weights(self, directory: str, version: int) -> None:
            for number in (2, 3) if version == 1 else ():
                heard[0](LoadWeights(manifest=of(number)))
            await super().load_weights(directory, version)
            if version == 1:
                shutil.rmtree(tmp_path / "v1")
            read.append(len((Path(directory) / "model.safetensors").read_bytes()))
            loaded.append(version)
            if version == 3:
                heard[0](Shutdown(why=""))

    def of(version: int) -> Manifest:
        return manifest_of(version, directory=str(tmp_path / f"v{version}"))

    def connect(join: Join, receive: Callable[[ToPeer], None]) -> Declared:
        heard.append(receive)
        return Declared()

    heard: list[Callable[[ToPeer], None]] = []
    loaded: list[int] = []
    engine = Slow(slots=2, vocabulary=VOCABULARY)
    worker = Worker(engine, await engine.start(), connect, name="e0", chunk_tokens=8)
    heard[0](Welcome(incarnation=1, epoch=1, weights_directory=""))
    heard[0](LoadWeights(manifest=of(1)))
    assert await worker.run() == 0
    assert (loaded, read) == ([1, 3], [len(content)] * 2)
