"""A learner process over real sockets: join, train, publish, save, resume, leave."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.checkpoint.export import ExportError, export_model
from learner.weights import weights_checksum
from pipeline.wire.messages import (
    CloseStep,
    FromPeer,
    GroupTrained,
    Heartbeat,
    Join,
    Published,
    Save,
    Saved,
    Shutdown,
    Spans,
    StepDone,
    ToPeer,
    Welcome,
)
from pipeline.wire.server import StageServer
from tests.learner.ranks import ROOT, STEPS, group_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]
MODEL = ROOT / "models" / "chain-sums"
T = TypeVar("T")


class Stage:
    """The stage's end of the wire, and the learner ranks that it started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config.yaml"
        self.config.write_text(f"model: {MODEL}\nlearner: {{zero: 3, ranks: 2}}\n")
        self.server = StageServer(directory / "s")
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.identities: dict[int, bytes] = {}

    def start(self, world: int, *more: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for rank in range(world):
            command = ["-m", "learner.learner_rank", "--stage", str(self.server.directory)]
            command += ["--config", str(self.config), "--rank", str(rank), "--world", str(world)]
            process = subprocess.Popen([sys.executable, *command, *more], cwd=ROOT, env=environment)
            self.ranks.append(process)

    async def next(self, kind: type[T]) -> tuple[bytes, T]:
        """The next message of this kind; only such as come at any time may come before it."""
        while True:
            identity, message = await asyncio.wait_for(self._receive(), 180)
            if isinstance(message, kind):
                return identity, message
            assert isinstance(message, Heartbeat | Join | Spans), message

    async def _receive(self) -> tuple[bytes, FromPeer]:
        receiving = asyncio.ensure_future(self.server.receive_control())
        while not (await asyncio.wait([receiving], timeout=1))[0]:
            died = [process.poll() for process in self.ranks if process.poll()]
            assert not died, f"a rank ended with {died}"
        return receiving.result()

    async def join(self, world: int) -> dict[int, Join]:
        joined: dict[int, Join] = {}
        while len(joined) < world:
            identity, join = await self.next(Join)
            joined[join.rank], self.identities[join.rank] = join, identity
        for identity in self.identities.values():
            weights = str(self.directory / "w")
            self.server.send(identity, Welcome(incarnation=1, epoch=1, weights_directory=weights))
        return joined

    def send(self, rank: int, message: ToPeer) -> None:
        self.server.send(self.identities[rank], message)

    async def step(self, number: int, groups: tuple[int, ...], world: int) -> StepDone:
        """One whole step; answers rank 0's StepDone."""
        for at, group in enumerate(groups):
            found = group_of(group, step=number)
            self.send(at % world, found)
        counted = 0.0
        for _ in groups:
            counted += (await self.next(GroupTrained))[1].tokens
        for rank in range(world):
            self.send(rank, CloseStep(step=number, groups=groups, normaliser=counted))
        done = [(await self.next(StepDone))[1] for _ in range(world)]
        assert {one.version for one in done} == {number + 1}
        [first] = [one for one in done if one.manifest is not None]
        return first


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    try:
        yield made
    finally:
        for process in made.ranks:
            process.kill()
            process.wait()
        made.server.close()


def logprobs_of(directory: Path, probe: list[int]) -> list[float]:
    net = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        logits = net(input_ids=torch.tensor([probe])).logits[0, :-1].log_softmax(-1)
    return logits.gather(-1, torch.tensor(probe[1:])[:, None])[:, 0].tolist()


async def test_two_ranks_train_publish_save_and_resume_where_they_were(stage: Stage):
    stage.server.open_sockets()
    stage.start(2)
    joined = await stage.join(2)
    assert [joined[rank].name for rank in (0, 1)] == ["l0", "l1"]
    assert joined[0].resumed_step == -1
    assert joined[0].vocabulary == 24
    _, published = await stage.next(Published)
    assert published.manifest.version == 0
    assert published.manifest.logprobs["1.0"] == pytest.approx(
        logprobs_of(MODEL, published.manifest.probe), abs=1e-4
    )
    await stage.step(0, STEPS[0], 2)
    done = await stage.step(1, STEPS[1], 2)
    assert done.manifest is not None
    weights = Path(done.manifest.directory)
    assert weights_checksum(weights / "model.safetensors") == done.manifest.checksum
    assert sorted(path.name for path in weights.parent.iterdir()) == ["v1", "v2"]
    assert done.metrics["grad_norm"] > 0

    # a checkpoint while the next step's gradient is being built
    stage.send(0, group_of(8, step=2))
    await stage.next(GroupTrained)
    checkpoint = stage.directory / "checkpoint"
    checkpoint.mkdir()
    for rank in range(2):
        stage.send(rank, Save(directory=str(checkpoint), step=1, version=2))
    for _ in range(2):
        assert (await stage.next(Saved))[1].error == ""
    stage.send(0, Save(directory=str(checkpoint), step=1, version=7))
    assert "holds 2" in (await stage.next(Saved))[1].error
    for rank in range(2):
        stage.send(rank, Shutdown(why="enough"))
    assert [process.wait(60) for process in stage.ranks] == [0, 0]

    exported = export_model(checkpoint, stage.directory / "exported")
    AutoTokenizer.from_pretrained(exported)
    assert logprobs_of(exported, done.manifest.probe) == pytest.approx(
        done.manifest.logprobs["1.0"], abs=1e-4
    )
    with pytest.raises(ExportError, match="not an empty directory"):
        export_model(checkpoint, exported)

    stage.ranks.clear()
    stage.identities.clear()
    stage.start(2, "--resume", str(checkpoint))
    joined = await stage.join(2)
    assert joined[1].resumed_step == 1
    _, published = await stage.next(Published)
    assert published.manifest.version == 2
    assert published.manifest.logprobs == done.manifest.logprobs
    assert published.manifest.checksum == done.manifest.checksum
    await stage.step(2, STEPS[2], 2)
    for process in stage.ranks:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in stage.ranks] == [0, 0]


def test_export_names_what_a_directory_lacks(tmp_path: Path):
    with pytest.raises(ExportError, match=r"config\.json"):
        export_model(tmp_path, tmp_path / "out")
