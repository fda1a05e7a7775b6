"""Weights are proved before an engine sees them: claims about `engines.weights` and the gap."""

import math
import os
import shutil
from pathlib import Path

import pytest
import xxhash

from engines.base import EngineError
from engines.weights import WeightReceiver, WeightsError, held_file
from engines.weights_probe import largest_gap
from pipeline.wire.messages import Manifest


def manifest_of(directory: Path, content: bytes, **changes: object) -> Manifest:
    fields: dict[str, object] = {
        "version": 3,
        "directory": str(directory),
        "bytes": len(content),
        "checksum": xxhash.xxh3_128_hexdigest(content),
        "probe": [2, 3],
        "logprobs": {},
    }
    return Manifest(**(fields | changes))  # pyright: ignore[reportArgumentType]


def test_the_published_file_is_received(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert WeightReceiver().receive(manifest_of(tmp_path, b"weights")) == tmp_path


@pytest.mark.fault("a file of weights with a byte changed, or shorter", part="engines", by="file")
@pytest.mark.parametrize("found", [b"weightz", b"weight", b""])
def test_a_file_that_is_not_the_published_one_is_refused(tmp_path: Path, found: bytes):
    """Promise: it is refused by version and name before an engine reads it.
    Bound: before the load.
    """
    (tmp_path / "model.safetensors").write_bytes(found)
    with pytest.raises(WeightsError, match=r"version 3: .*model\.safetensors has \d bytes"):
        WeightReceiver().receive(manifest_of(tmp_path, b"weights"))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"model\.safetensors: No such file"):
        WeightReceiver().receive(manifest_of(tmp_path, b"weights"))


def test_the_gap_is_the_largest_difference_over_what_the_engine_could_tell():
    assert largest_gap([-1.0] * 9 + [math.nan], [-1.0] * 8 + [-1.5, -9.0], "1.0") == 0.5


def test_a_probe_of_fewer_than_eight_positions_proves_nothing():
    with pytest.raises(EngineError, match="compares 7 of 10 positions"):
        largest_gap([-1.0] * 7 + [math.nan] * 3, [-1.0] * 10, "1.0")


def test_a_learner_logprob_that_is_nan_is_an_infinite_gap():
    assert largest_gap([-1.0] * 9, [-1.0] * 8 + [math.nan], "1.0") == math.inf


def test_a_file_that_is_removed_while_it_is_loaded_stays_until_that_is_done(tmp_path: Path):
    version = tmp_path / "v3"
    version.mkdir()
    (version / "model.safetensors").write_bytes(b"weights")
    left = tmp_path / ".held-4194999"  # no process has this id: a killed engine's
    left.mkdir()
    other = tmp_path / f".held-{os.getppid()}"  # an engine beside this one
    other.mkdir()
    with held_file(version) as held:
        shutil.rmtree(version)
        assert (held / "model.safetensors").read_bytes() == b"weights"
    assert sorted(tmp_path.iterdir()) == [other]
    with pytest.raises(WeightsError, match="was removed while it was read"), held_file(version):
        pass


def test_an_interrupted_load_holds_nothing(tmp_path: Path):
    (tmp_path / "v3").mkdir()
    (tmp_path / "v3" / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(EngineError), held_file(tmp_path / "v3"):
        raise EngineError("half loaded")
    assert [path.name for path in tmp_path.iterdir()] == ["v3"]
