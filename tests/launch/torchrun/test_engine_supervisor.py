"""An engine's supervisor restarts it, gives up, and ends when it is asked to."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from launch.launcher.processes import Child, end_all
from launch.torchrun import engine_supervisor
from launch.torchrun.engine_supervisor import guest_arguments, supervise
from launch.torchrun.node import CONFIG
from pipeline.wire.curve_auth import new_pair
from pipeline.wire.keys import PeerKeys, TransportError, peer_keys_of, write_private

ENDS_WELL, FAILS = ["this"], ["json.tool"]  # modules that do so at once
BEGINS_AND_FAILS = "import sys\nprint('e0: ready (played)', flush=True)\nsys.exit(3)\n"


def child_of(command: list[str], tmp_path: Path) -> Child:
    (tmp_path / "begins_and_fails.py").write_text(BEGINS_AND_FAILS)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    return Child("e0", command, tmp_path / "e0.log", environment)


def test_an_engine_that_ends_in_good_order_is_not_started_again(tmp_path: Path) -> None:
    child = child_of(ENDS_WELL, tmp_path)
    assert supervise(child, restarts=3, stopped=[]) == 0
    assert child.starts == 1


@pytest.mark.fault("an engine dies at each start", part="engines", by="process")
def test_an_engine_that_dies_is_started_again_so_often_and_its_log_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise: its supervisor starts it again `engine.restarts` times, then ends with status 1;
    each end is told with the last lines of its log.
    Bound: the number of starts (here 2).
    """
    child = child_of(["begins_and_fails"], tmp_path)
    assert supervise(child, restarts=1, stopped=[]) == 1
    assert child.starts == 2
    said = capsys.readouterr().out
    assert said.count("e0 ended (exit ") == 2
    assert "end of its log:\n" in said


@pytest.mark.fault("an engine cannot start", part="engines", by="process")
def test_an_engine_that_cannot_start_is_not_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise: it ends before it has loaded its model, so it would again: status 1 after the first
    try, with its innermost error. Bound: at its end.
    """
    child = child_of(FAILS, tmp_path)
    assert supervise(child, restarts=9, stopped=[]) == 1
    assert child.starts == 1
    assert "e0 could not start: " in capsys.readouterr().out


def test_a_keeper_that_is_told_to_end_says_by_which_signal(tmp_path: Path) -> None:
    child = child_of(FAILS, tmp_path)
    assert supervise(child, restarts=9, stopped=[signal.SIGTERM]) == 128 + 15
    end_all([child], 5.0)


def test_a_guest_takes_addresses_keys_and_configuration_from_its_key_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_supervisor, "shared_directory", lambda owner, name: tmp_path)
    peer_keys = PeerKeys(
        control="c",
        data="d",
        weights="w",
        server=new_pair().public,
        keys=new_pair(),
        config="model: m",
    )
    arguments = guest_arguments(write_private(tmp_path / "join.key", peer_keys), "extra")
    assert arguments[:4] == ["--scratch", str(tmp_path), "--name", "extra"]
    assert peer_keys_of(tmp_path / "stage.key") == peer_keys
    assert (tmp_path / CONFIG).read_text() == "model: m"
    assert peer_keys.keys is not None
    assert not any(peer_keys.keys.secret in argument for argument in arguments)
    with pytest.raises(TransportError, match="not a key file"):
        guest_arguments(tmp_path / "missing", "extra")
