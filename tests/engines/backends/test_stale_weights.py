"""No engine serves stale weights unseen: faults of a load, against the tensors and the probe.

The faults, and the learner's real optimizer steps, are those of `scripts.bench.stale_weights`.
"""

import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from engines.base import Engine
from engines.server import Worker
from engines.weights import FILE, WeightsError
from engines.weights_probe import WeightsProof
from pipeline.config.schema import EngineConfig
from pipeline.wire.messages import (
    FromPeer,
    Join,
    LoadWeights,
    Manifest,
    Shutdown,
    TokenBatch,
    ToPeer,
    WeightsFailed,
    WeightsLoaded,
    Welcome,
)
from scripts.bench import stale_weights
from scripts.bench.stale_weights import FAULTS, UNMERGED, Trainer, faulty_versions, sound_versions

pytestmark = pytest.mark.asyncio(loop_scope="session")

RATES = pytest.mark.parametrize("lr", [1e-6, pytest.param(1e-4, marks=pytest.mark.long)])
TENSORS = 35
"""Of the built-in model; its output layer is tied to the embedding."""


def log(line: str) -> None:
    print(line)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def bfloat16_engine() -> AsyncIterator[Engine]:
    async with stale_weights.started_engine("transformers", "bfloat16") as engine:
        yield engine


@pytest.fixture(
    params=[
        pytest.param("transformers float32", marks=pytest.mark.long),
        "transformers bfloat16",
        pytest.param("vllm float32", marks=[pytest.mark.vllm, pytest.mark.slow]),
    ]
)
def served(request: pytest.FixtureRequest) -> tuple[Engine, str]:
    """An engine and its type; vLLM in bfloat16 would be another half a minute."""
    kind, dtype = request.param.split()
    name = "bfloat16_engine" if dtype == "bfloat16" else f"{kind}_engine"
    return request.getfixturevalue(name), dtype


@pytest.mark.fault("an engine holds a stale layer, head or model", part="engines", by="direct")
@RATES
@pytest.mark.parametrize("fault", [*FAULTS, UNMERGED])
async def test_stale_weights_are_refused_at_once_and_a_probe_alone_never_calls_them_proved(
    served: tuple[Engine, str], tmp_path: Path, fault: str, lr: float
):
    """Promise: the version is refused and loaded again, since a tensor differs from the published
    one; where an engine cannot show its tensors, the probe refuses it or cannot tell.
    Bound: the first version.
    """
    engine, dtype = served
    found = await faulty_versions(engine, fault, dtype, lr, 2, tmp_path)
    assert found["tensors"].refused_after == 1
    assert found["change"].proved == 0
    if dtype == "float32":
        assert found["change"].refused_after == 1, "the change is far above the rounding"


@RATES
async def test_sound_versions_are_proved_by_every_tensor_and_never_refused(
    served: tuple[Engine, str], tmp_path: Path, lr: float
):
    engine, dtype = served
    found = await sound_versions(engine, dtype, lr, 3, tmp_path)
    assert (found.refused, found.proved_by_tensors) == (0, 3)
    assert found.tensors == f"{TENSORS} of {TENSORS}"
    assert found.proved_by_change == (3 if dtype == "float32" else 0)
    assert found.noise < 3.0


@pytest.mark.long
async def test_an_engine_that_stands_still_is_found_in_the_end_though_no_version_shows_it(
    bfloat16_engine: Engine, tmp_path: Path
):
    found = await faulty_versions(
        bfloat16_engine, "nothing is loaded", "bfloat16", 3e-5, 40, tmp_path
    )
    assert found["change"].unsure > 0, "choose a smaller learning rate: one version shows it"
    assert found["change"].proved == 0
    assert found["change"].refused_after > 1


@pytest.mark.parametrize("tensor", ["model.norm.weight", "model.layers.2.self_attn.k_proj.weight"])
async def test_one_number_of_one_tensor_is_seen_and_named(
    served: tuple[Engine, str], tmp_path: Path, tensor: str
):
    engine, dtype = served
    trainer = Trainer(tmp_path / "weights", dtype, 1e-4)
    manifest = trainer.publish()
    tensors = load_file(Path(manifest.directory) / FILE)
    flat = tensors[tensor].view(-1)
    flat[5] = torch.nextafter(flat[5], torch.tensor(9.0, dtype=flat.dtype))
    (tmp_path / "changed").mkdir()
    save_file(tensors, tmp_path / "changed" / FILE)
    await engine.load_weights(str(tmp_path / "changed"), 0)
    with pytest.raises(WeightsError, match=f"1 of {TENSORS} tensors are not .*: {tensor}$"):
        await WeightsProof(engine, log).prove(manifest, manifest.directory)


async def test_a_type_that_is_coarser_than_the_file_is_checked_after_rounding(
    bfloat16_engine: Engine, tmp_path: Path
):
    """Published in float32 (`engine.dtype: auto`), held in bfloat16."""
    trainer = Trainer(tmp_path / "weights", "float32", 1e-4)
    trainer.step()
    manifest = trainer.publish()
    await bfloat16_engine.load_weights(manifest.directory, 0)
    found = await bfloat16_engine.check_tensors(manifest.directory, manifest.tensors)
    assert (len(found.equal), found.different) == (TENSORS, ())


async def test_a_tensor_that_is_not_in_the_file_is_different(
    served: tuple[Engine, str], tmp_path: Path
):
    engine, dtype = served
    manifest = Trainer(tmp_path / "weights", dtype, 1e-4).publish()
    await engine.load_weights(manifest.directory, 0)
    found = await engine.check_tensors(manifest.directory, {**manifest.tensors, "more": "0" * 16})
    assert (len(found.equal), found.different) == (TENSORS, ("more",))


async def test_tensors_that_an_engine_cannot_show_leave_the_decision_to_the_probe(
    transformers_engine: Engine, tmp_path: Path
):
    """Two versions; of 36 tensors 35 can be read."""
    trainer = Trainer(tmp_path / "weights", "float32", 1e-4)
    proof = WeightsProof(transformers_engine, log)
    answers: list[WeightsLoaded] = []
    for version in range(2):
        manifest = trainer.publish()
        path = Path(manifest.directory) / FILE
        tensors = load_file(path)
        tensors["an.expert.weight"] = tensors["model.norm.weight"].clone()
        save_file(tensors, path)
        more = manifest.tensors | {"an.expert.weight": manifest.tensors["model.norm.weight"]}
        manifest = msgspec.structs.replace(manifest, tensors=more)
        await transformers_engine.load_weights(manifest.directory, version)
        answers.append(await proof.prove(manifest, manifest.directory))
        trainer.step()
    assert [answer.proved for answer in answers] == [False, True]
    assert {(a.tensors_checked, a.tensors) for a in answers} == {(TENSORS, TENSORS + 1)}


@pytest.mark.parametrize("unlisted", [0, 1])
async def test_tensors_without_a_checksum_are_published_and_not_checked(
    transformers_engine: Engine, tmp_path: Path, unlisted: int
):
    manifest = Trainer(tmp_path / "weights", "float32", 1e-4).publish()
    await transformers_engine.load_weights(manifest.directory, 0)
    manifest = msgspec.structs.replace(manifest, unlisted=unlisted)
    answer = await WeightsProof(transformers_engine, log).prove(manifest, manifest.directory)
    assert answer.proved is (unlisted == 0)
    assert (answer.tensors_checked, answer.tensors) == (TENSORS, TENSORS + unlisted)


async def test_a_learner_that_publishes_other_weights_than_it_trains_is_told_in_the_log(
    transformers_engine: Engine, tmp_path: Path
):
    """Nothing is stale on the engine: it holds what was published."""
    trainer = Trainer(tmp_path / "weights", "float32", 1e-4)
    said: list[str] = []
    proof = WeightsProof(transformers_engine, said.append)
    manifest = trainer.publish()
    await transformers_engine.load_weights(manifest.directory, 0)
    assert (await proof.prove(manifest, manifest.directory)).proved
    assert said == []
    trainer.step()
    newer = trainer.publish()
    wrong = msgspec.structs.replace(newer, directory=manifest.directory, tensors=manifest.tensors)
    assert (await proof.prove(wrong, manifest.directory)).proved
    [line] = said
    assert "does it publish what it trains?" in line


class Link:
    """The worker's end of the sockets of a stage that has it load one version after another."""

    def __init__(self, *manifests: Manifest) -> None:
        self.sent: list[FromPeer] = []
        self._next: list[ToPeer] = [*(LoadWeights(manifest=m) for m in manifests), Shutdown(why="")]

    def start(self) -> None: ...
    def close(self) -> None: ...
    def send_tokens(self, header: TokenBatch, tokens: bytes, logprobs: bytes) -> None: ...
    def set_activity(self, activity: str, budget_s: float) -> None: ...

    def send(self, message: FromPeer) -> None:
        self.sent.append(message)
        if isinstance(message, WeightsLoaded | WeightsFailed):
            self.go_on()

    def go_on(self) -> None:
        self.receive(self._next.pop(0))

    def connect(self, join: Join, receive: Callable[[ToPeer], None]) -> "Link":
        self.receive = receive
        return self


async def test_a_worker_reports_a_stale_load_as_failed_and_proves_the_next_one(tmp_path: Path):
    """It goes on: the stage has it load again."""
    from engines.backends.transformers import TransformersEngine

    class OneStaleLoad(TransformersEngine):
        async def load_weights(self, directory: str, version: int) -> None:
            if version == 1 and not self.failed:
                self.failed = True
                directory = first
            await super().load_weights(directory, version)

        failed = False

    section = EngineConfig(kind="transformers", dtype="bfloat16", slots=2)
    engine = OneStaleLoad(str(stale_weights.MODEL), section)
    info = await engine.start()
    trainer = Trainer(tmp_path / "weights", "bfloat16", 1e-6)
    manifests: list[Manifest] = [trainer.publish()]
    first = str(shutil.copytree(manifests[0].directory, tmp_path / "first"))
    trainer.step()
    manifests.append(trainer.publish())
    link = Link(manifests[0], manifests[1], manifests[1])
    worker = Worker(engine, info, link.connect, name="e0", chunk_tokens=8)
    link.receive(Welcome(incarnation=1, epoch=1, weights_directory=""))
    link.go_on()
    assert await worker.run() == 0
    said = [one for one in link.sent if isinstance(one, WeightsLoaded | WeightsFailed)]
    assert [type(one) for one in said] == [WeightsLoaded, WeightsFailed, WeightsLoaded]
    assert isinstance(said[1], WeightsFailed)
    assert "tensors are not those that were published" in said[1].why
    last = said[2]
    assert isinstance(last, WeightsLoaded)
    assert (last.version, last.proved, last.tensors_checked, last.tensors) == (1, True, 35, 35)


async def test_a_published_tensor_has_its_checksum_in_the_manifest(tmp_path: Path):
    manifest = Trainer(tmp_path / "weights", "bfloat16", 1e-4).publish()
    assert manifest.tensors.keys() == load_file(Path(manifest.directory) / FILE).keys()
    assert len(json.dumps(manifest.tensors)) < 100 * TENSORS, "a report may have 1 MiB"
