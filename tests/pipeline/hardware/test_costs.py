"""Costs by name, by options and by measurement, and how a configuration asks for them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pipeline.config.load import ConfigError, dump, load
from pipeline.config.pace import engine_pace, learner_pace
from pipeline.hardware.costs import (
    DEVICES,
    SHAPES,
    EngineProfile,
    engine_cost,
    hardware_named,
    hardware_names,
    roofline_cost,
    token_cost,
)
from tests.paths import ROOT

CONFIG = ROOT / "configs" / "quickstart.yaml"


def test_every_short_name_is_a_device_and_a_shape() -> None:
    assert "h20-7b" in hardware_names() and "h200-30b-a3b" in hardware_names()
    for name in hardware_names():
        device, shape = hardware_named(name)
        assert device in DEVICES.values() and shape in SHAPES.values()
    with pytest.raises(ValueError, match="expected a GPU and a model, such as h20-3b"):
        hardware_named("h20")


def test_a_step_grows_by_sequences_past_the_knee_by_its_cache_and_by_what_it_prefills() -> None:
    cost = roofline_cost(0.006, lambda _: 0.00475, 0.000146, kv_s=1e-7)
    assert cost.step_s(1, 0, 0) == pytest.approx(0.01075)
    assert cost.step_s(32, 0, 0) == pytest.approx(0.01075, rel=1e-3)
    assert cost.step_s(64, 0, 0) == pytest.approx(0.006 + 64 * 0.000146)
    assert cost.step_s(64, 1000, 50) - cost.step_s(64, 0, 0) == pytest.approx(1e-4 + 0.0073)
    assert cost.step_s(0, 0, 0) == 0.0


def test_options_replace_what_follows_from_the_hardware() -> None:
    named = engine_pace("h20-7b")
    assert named == engine_cost(SHAPES["qwen2.5-7b"], DEVICES["h20"])
    own = load(CONFIG, ["engine.pace={name: h20-7b, fixed_ms: 1, faster: 2}"]).engine.pace
    cost = engine_pace(own)
    assert named is not None and cost is not None
    assert cost.step_s(1, 0, 0) == pytest.approx((named.step_s(1, 0, 0) - 0.005) / 2)
    assert cost.kv_s == named.kv_s / 2
    assert engine_pace("") is None and learner_pace("") is None


def test_a_profile_measured_elsewhere_is_a_pace(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    profile = EngineProfile(latency=((1, 0.01), (8, 0.02)), request_s=0.0016, beside=1.0)
    file.write_bytes(msgspec.json.encode(profile))
    config = load(CONFIG, [f"engine.pace={file}"])
    cost = engine_pace(config.engine.pace)
    assert cost is not None
    assert cost.step_s(8, 0, 16) == pytest.approx(0.02 + 0.0016)
    assert config.paced == "card.json"
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load(tmp_path / "dumped.yaml") == config


def test_a_learners_pace_is_of_its_gpus_or_given() -> None:
    config = load(CONFIG, ["learner.pace={name: h20-7b, gpus: 4, backward_us: 7}"])
    cost = learner_pace(config.learner.pace)
    whole = token_cost(SHAPES["qwen2.5-7b"], DEVICES["h20"], 4)
    assert cost == msgspec.structs.replace(whole, backward_s=7e-6)
    assert config.paced == "learner h20-7b gpus 4 backward_us 7"


@pytest.mark.parametrize(
    "override, said",
    [
        ("engine.pace=h21-7b", "'h21-7b' is no hardware that is known.*did you mean h20-7b"),
        ("engine.pace=nothing.json", "engine.pace: found 'nothing.json': no such file"),
        ("engine.pace={faster: 2}", "faster than what"),
        ("engine.pace={fixed_ms: -1}", "engine.pace.fixed_ms: found -1"),
        ("engine.pace={fast: 2}", "engine.pace.fast: unknown key"),
        ("learner.pace=a100-7b", "learner.pace: 'a100-7b' is no hardware"),
        ("weights.bytes=5", "without weights.pace it counts for nothing"),
        ("weights.pace=-1", "weights.pace: found -1"),
    ],
)
def test_a_pace_that_is_none_is_refused_by_key(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(CONFIG, [override])


def test_what_is_no_profile_is_refused_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text("{}")
    with pytest.raises(ConfigError, match=r"other\.json: no profile of launch\.bench"):
        load(CONFIG, [f"engine.pace={file}"])
    profile = EngineProfile(latency=((1, 0.01), (8, 0.02)), request_s=0.0, beside=1.0)
    file.write_bytes(msgspec.json.encode(profile))
    with pytest.raises(ConfigError, match="the only option beside it is faster"):
        load(CONFIG, [f"engine.pace={{name: {file}, fixed_ms: 2}}"])


def test_a_simulated_engine_takes_no_pace() -> None:
    with pytest.raises(ConfigError, match="which has a pace of its own"):
        load(CONFIG, ["engine.kind=simulated", "engine.pace=h20-7b"])
