"""What the launcher keeps in memory, and what it leaves."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launch import local
from pipeline.runfolder import RunFolder


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_weights_of_dead_runs_are_swept_and_those_of_live_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SHARED_MEMORY", tmp_path)
    dead = tmp_path / f"darts-{os.getuid()}-{dead_pid()}-ab12-old"
    foreign = tmp_path / f"darts-{os.getuid() + 1}-{dead_pid()}-ab12-old"
    for directory in (dead, foreign):
        directory.mkdir()
    live = local.weights_directory(RunFolder(tmp_path / "run"), need_bytes=1)
    assert stat.S_IMODE(live.stat().st_mode) == 0o700
    assert local.sweep() == [dead]
    assert live.exists()
    assert foreign.exists()


def test_weights_go_below_the_run_when_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SHARED_MEMORY", tmp_path / "none")
    run = RunFolder(tmp_path / "run")
    run.create()
    assert local.weights_directory(run, need_bytes=1).parent == run.path
