"""Nasty names, wherever a name from outside becomes a path: refused by name, never followed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import store
from pipeline.checkpoint.store import CheckpointError, verify
from pipeline.config.load import ConfigError, load
from pipeline.system.run_folder import RunError, RunFolder
from pipeline.wire.codec import decode_from_peer, encode_message
from pipeline.wire.messages import Join, WireError
from tests.paths import ROOT

LONG = "x" * 5000
# name -> of these: run, peer, manifest, config
NASTY: dict[str, str] = {
    "": "run peer manifest config",
    ".": "run peer manifest",
    "..": "run peer manifest",
    "/": "run peer manifest",
    "../x": "peer manifest config",
    "../../../../etc/passwd": "peer manifest",
    "model/../../x": "peer manifest config",
    "/etc/passwd": "peer manifest",
    "/dev/zero": "peer manifest config",
    "/proc/self/environ": "peer manifest",
    "~": "run peer manifest",
    "~nobody-of-this-name/x": "peer manifest config",
    "$HOME": "run peer manifest config",
    "a b": "run peer manifest config",
    "a\0b": "run peer manifest config",
    "a\n": "run peer manifest config",
    "\n": "run peer manifest config",
    "a\\b": "run peer manifest config",
    "a\x1b[2J": "run peer manifest config",
    "a;rm -rf b": "run peer manifest config",
    "`id`": "run peer manifest config",
    "a:b": "run peer manifest config",
    "*": "run peer manifest",  # a pattern, of data
    LONG: "run peer manifest config",
    f"a/{LONG}": "run peer manifest config",
    "r\u00fcn": "run peer manifest config",
    "\uff52un": "run peer manifest config",  # a wide r
    "\u0440un": "run peer manifest config",  # a Cyrillic r
    "run\u200b": "run peer manifest config",  # with a space of no width
    "\u202enur": "run peer manifest config",
    "link": "manifest",
    "linked/inside": "manifest",
    "pipe": "manifest config",
    "folder": "manifest",
}


def as_run(folder: Path, name: str) -> None:
    with pytest.raises(RunError, match="a run's name has 1 to 64"):
        RunFolder(Path(name))


def as_peer(folder: Path, name: str) -> None:
    with pytest.raises(WireError):
        decode_from_peer(encode_message(Join(protocol=1, role="engine", name=name)))


def as_manifest(folder: Path, name: str) -> None:
    """An entry of a manifest that its author has sealed."""
    manifest: dict[str, Any] = {"format": store.FORMAT, "files": {name: [1, "0"]}}
    manifest["checksum"] = store._seal(manifest)
    (folder / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        verify(folder)


def as_config(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.train: found "):
        load(ROOT / "configs" / "quickstart.yaml", [f"data.train={json.dumps(name)}"])


WHERE: dict[str, Callable[[Path, str], None]] = {
    "run": as_run,
    "peer": as_peer,
    "manifest": as_manifest,
    "config": as_config,
}


@pytest.mark.fault("names that would lead out of a folder", part="configuration", by="file")
@pytest.mark.parametrize("where", WHERE)
def test_a_nasty_name_is_refused_wherever_it_would_become_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Promise: run, peer, manifest and configuration refuse each.
    Bound: before the path is used.
    """
    folder = tmp_path / "step-000001"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "inside").write_text("x")
    (folder / "link").symlink_to(tmp_path / "outside" / "inside")
    (folder / "linked").symlink_to(tmp_path / "outside")
    os.mkfifo(folder / "pipe")
    monkeypatch.chdir(folder)
    for name, of in NASTY.items():
        if where in of.split():
            WHERE[where](folder, name)


@pytest.mark.parametrize("files", [None, 3, "x", [], ["x"], {"x": None}, {"x": [1]}, {"x": {}}])
def test_a_manifest_of_another_shape_is_a_damaged_one(tmp_path: Path, files: Any) -> None:
    manifest: dict[str, Any] = {"format": store.FORMAT, "files": files}
    manifest["checksum"] = store._seal(manifest)
    (tmp_path / store.MANIFEST).write_text(json.dumps(manifest))
    (tmp_path / "x").write_text("x")
    with pytest.raises(CheckpointError):
        verify(tmp_path)


@pytest.mark.parametrize("name", ["model", "data.held_out", "learner.reference"])
@pytest.mark.parametrize("value", ["a\0b", LONG, "~nobody-of-this-name/x", "/dev/zero"])
def test_every_path_of_the_configuration_is_looked_at_without_harm(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load(ROOT / "configs" / "quickstart.yaml", [f"{name}={json.dumps(value)}"])


def test_a_configuration_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(ConfigError, match="more than 256000 characters"):
        load(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["run", "a.b_c-2", "A" * 64, "...", "-x"])
def test_a_plain_name_is_a_run_s(name: str) -> None:
    assert RunFolder(Path("runs") / name).path.name == name
