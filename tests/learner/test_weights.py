"""Published weights: whole, named as Hugging Face names them, proved, at most two on disk."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from learner import lora, weights
from learner.build import load_model
from learner.rounded_weights import is_rounded
from learner.weights import (
    PublishError,
    WeightPublisher,
    probe_logprobs,
    probe_tokens,
    weights_checksum,
)
from pipeline.config.schema import LoraConfig
from tests.learner.ranks import ROOT, VOCABULARY, make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("weights") / "model")


def test_published_file_equals_what_transformers_saves(model: Path, tmp_path: Path):
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    manifest = WeightPublisher(tmp_path / "w", [3] * 40).publish_version(net, 5, {})
    path = Path(manifest.directory) / "model.safetensors"
    found, expected = load_file(path), load_file(model / "model.safetensors")
    assert found.keys() == expected.keys()  # the tied head among the missing
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (manifest.version, manifest.bytes) == (5, path.stat().st_size)
    assert manifest.checksum == weights_checksum(path)
    assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == 0o700


def test_probe_is_the_learners_logprob_at_both_temperatures(model: Path, tmp_path: Path):
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    probe = probe_tokens(VOCABULARY, {0, 1})
    publisher = WeightPublisher(tmp_path / "w", probe)
    manifest = publisher.publish_version(net, 0, probe_logprobs(net, probe))
    assert manifest.probe == probe == probe_tokens(VOCABULARY, {0, 1})
    assert len(probe) > 32
    assert not {0, 1} & set(probe)
    with torch.no_grad():
        logits = net(input_ids=torch.tensor([probe])).logits[0, :-1]
    for temperature in (1.0, 0.7):
        scaled = (logits / temperature).log_softmax(-1)
        expected = scaled.gather(-1, torch.tensor(probe[1:])[:, None])[:, 0]
        assert manifest.logprobs[str(temperature)] == pytest.approx(expected.tolist(), abs=1e-5)


def test_at_most_two_versions_are_on_disk_and_a_version_can_be_published_again(
    model: Path, tmp_path: Path
):
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    publisher = WeightPublisher(tmp_path / "w", [3] * 40)
    for version in range(4):
        publisher.publish_version(net, version, {})
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["v2", "v3"]
    WeightPublisher(tmp_path / "w", [3] * 40).publish_version(
        net, 2, {}
    )  # a learner that was resumed
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["v2"]


def test_loss_options_are_checked_without_loading_torch():
    program = (
        "import sys; from pipeline.plugins import registry; registry.find_plugin('loss', 'dapo');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


# --- what an engine is to prove ---------------------------------------------------------------


def trained(model: Path, lr: float, adapters: bool) -> Any:
    """A model after one real optimizer step."""
    net = load_model(model, torch.device("cpu"))
    if adapters:
        section = LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "down_proj"))
        lora.attach(net, section, model)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    tokens = torch.randint(2, VOCABULARY, (4, 30), generator=torch.Generator().manual_seed(2))
    net(tokens, labels=tokens).loss.backward()
    optimizer.step()
    return net


def test_every_tensor_has_the_checksum_of_its_bytes_in_the_file(model: Path, tmp_path: Path):
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    manifest = WeightPublisher(tmp_path / "w", [3] * 40, torch.bfloat16).publish_version(net, 0, {})
    path = Path(manifest.directory) / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    data = raw[8 + length :]
    expected = {
        name: xxhash.xxh3_64_hexdigest(data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__"
    }
    assert manifest.tensors == expected


@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "adapters"])
def test_logprobs_in_a_manifest_are_of_the_weights_as_they_were_rounded(
    model: Path, tmp_path: Path, adapters: bool
):
    net = trained(model, 1e-2, adapters)
    probe = probe_tokens(VOCABULARY, {0, 1})
    before = {name: p.clone() for name, p in net.named_parameters()}
    exact, rounded = probe_logprobs(net, probe), probe_logprobs(net, probe, torch.bfloat16)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert probe_logprobs(net, probe) == exact, "the adapters are on again"
    manifest = WeightPublisher(tmp_path / "w", probe, torch.bfloat16).publish_version(net, 0, {})
    published = load_model(model, torch.device("cpu"))
    file = load_file(Path(manifest.directory) / "model.safetensors")
    published.load_state_dict({name: one.float() for name, one in file.items()}, strict=False)
    expected = probe_logprobs(published, probe)
    for temperature, logprobs in rounded.items():
        assert logprobs == pytest.approx(expected[temperature], abs=2e-5)
        assert logprobs != pytest.approx(exact[temperature], abs=1e-3), "rounding shows"


def test_a_model_that_fails_in_a_probe_has_its_weights_back(model: Path):
    net = load_model(model, torch.device("cpu"))
    before = {name: p.clone() for name, p in net.named_parameters()}
    with pytest.raises(IndexError):
        probe_logprobs(net, [VOCABULARY + 5] * 20, torch.bfloat16)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert not is_rounded(net, torch.float32)
    assert is_rounded(net, torch.bfloat16)


@pytest.mark.parametrize("lr", [1e-6, 1e-4])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_adapter_that_is_not_merged_is_not_published(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lr: float,
    dtype: torch.dtype | None,
):
    net = trained(model, lr, adapters=True)
    publisher = WeightPublisher(tmp_path / "w", [3] * 40, dtype)
    publisher.publish_version(net, 0, {})
    merged = lora.merged_tensors

    def one_is_left_out(net: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name, layer = list(lora.adapted_layers(net))[1]
        return merged(net, tensors) | {f"{name}.weight": layer.base_layer.weight.detach()}

    monkeypatch.setattr(lora, "merged_tensors", one_is_left_out)
    with pytest.raises(lora.LoraError, match="the adapter is not in the weight"):
        publisher.publish_version(net, 1, {})
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["v0"]


def no_room(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing be free in this directory."""

    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(
        weights.shutil, "disk_usage", lambda path: Usage(0 if path == directory else 1 << 40)
    )


@pytest.mark.fault("memory is full when weights are published", part="learner", by="file")
def test_a_version_without_room_in_memory_lies_on_the_disk(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: somebody else has filled /dev/shm: the version is published in the run's folder,
    people are told so, and the run goes on; the next one is in memory again if there is room.
    Bound: that version.
    """
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    publisher = WeightPublisher(memory, [3] * 40, spare=disk)
    places = [Path(publisher.publish_version(net, 0, {}).directory)]
    no_room(memory, monkeypatch)
    for version in (1, 2):
        manifest = publisher.publish_version(net, version, {})
        places.append(Path(manifest.directory))
        assert manifest.checksum == weights_checksum(places[-1] / "model.safetensors")
    no_room(disk, monkeypatch)
    places.append(Path(publisher.publish_version(net, 3, {}).directory))
    assert places == [memory / "v0", disk / "v1", disk / "v2", memory / "v3"]
    assert [p.name for place in (memory, disk) for p in place.iterdir()] == ["v3", "v2"]


def test_an_error_while_a_version_is_written_leaves_nothing_and_takes_the_spare_place(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    memory, disk = tmp_path / "memory", tmp_path / "disk"

    def save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half of it")
        if path.is_relative_to(memory):
            raise SafetensorError("No space left on device (os error 28)")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(weights, "save_file", save)
    manifest = WeightPublisher(memory, [3] * 40, spare=disk).publish_version(net, 4, {})
    assert manifest.directory == str(disk / "v4")
    assert not list(memory.iterdir())
    monkeypatch.setattr(weights, "save_file", lambda *_, **__: os.stat(tmp_path / "none"))
    with pytest.raises(PublishError, match="version 5 found no room: .*memory.*disk.*make room"):
        WeightPublisher(memory, [3] * 40, spare=disk).publish_version(net, 5, {})
