"""Published weights: whole, named as Hugging Face names them, proved, at most two on disk."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learner.weights import WeightPublisher, probe_logprobs, probe_tokens, weights_checksum
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
        "import sys; from pipeline import plugins; plugins.find('loss', 'dapo');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
