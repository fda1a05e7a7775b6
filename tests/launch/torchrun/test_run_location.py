"""Which machine has the run's folder, and what a job under torchrun goes on with there."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from launch.torchrun import __main__ as torchrun
from launch.torchrun import run_location
from launch.torchrun.rendezvous import SharedSecret
from pipeline.checkpoint import store
from pipeline.config.load import dump, load
from pipeline.system.run_folder import RunError, RunFolder
from tests.launch.jobs.test_resume import Halted, state

__all__ = ["state"]
MINE = Path("mine.yaml")


class Store:
    """Torchrun's, at the job's first start."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def check(self, keys: list[str]) -> bool:
        return all(key in self.said for key in keys)

    def set(self, key: str, value: str) -> None:
        self.said[key] = value


def folder_of(path: Path) -> RunFolder:
    run = RunFolder(path)
    run.make_folders()
    return run


def test_a_folder_of_the_same_name_is_not_the_runs(tmp_path: Path) -> None:
    run, namesake = folder_of(tmp_path / "a" / "run"), folder_of(tmp_path / "b" / "run")
    run_location.write_round(run.path, "round-1")
    assert run_location.is_shared(run.path, "round-1")
    assert not run_location.is_shared(namesake.path, "round-1")
    run_location.write_round(namesake.path, "round-0")
    assert not run_location.is_shared(namesake.path, "round-1"), "of an earlier round"
    run_location.remove_round(run.path)
    assert not run_location.is_shared(run.path, "round-1")


@pytest.mark.fault(
    "the first machine is another one, and has not the run's folder", part="network", by="file"
)
def test_no_run_is_begun_anew_where_another_machines_has_left_its_logs(tmp_path: Path) -> None:
    """Promise: the job is refused, and the machine that has the folder is named.
    Bound: before anything starts.
    """
    run = folder_of(tmp_path / "run")
    run_location.refuse_moved_run(run)
    run_location.write_location(run.path, "10.0.0.1")
    args = argparse.Namespace(out=run.path, config=MINE, secret=SharedSecret(b""))
    config = load(Path("configs/quickstart.yaml"))
    with pytest.raises(RunError, match=r"the folder of this run is on 10\.0\.0\.1"):
        torchrun._open_run(config, args, Store())
    run.release_lock()
    run.config.write_text("model: m\n")
    run_location.refuse_moved_run(
        run
    )  # a machine that shares it, seen too early: it is the run's all the same


def test_a_run_that_is_over_goes_on_when_it_is_to_be_longer(tmp_path: Path) -> None:
    run = folder_of(tmp_path / "run")
    run.result.write_text(json.dumps({"steps": 60}))
    args = argparse.Namespace(out=run.path, config=MINE, secret=SharedSecret(b""))
    with pytest.raises(RunError, match=r"finished its 60 steps; raise step\.count"):
        torchrun._open_run(load(Path("configs/quickstart.yaml")), args, Store())
    run.release_lock()
    (run.checkpoints / "step-000060").mkdir()
    longer = load(Path("configs/quickstart.yaml"), ["step.count=61"])
    torchrun._open_run(longer, args, Store()).release_lock()


@pytest.mark.parametrize("zero, goes_on", [(0, True), (1, False), (3, False)])
def test_another_number_of_ranks_under_torchrun_goes_on_at_zero_0_and_is_refused_by_name_above(
    tmp_path: Path, state: store.Snapshot, zero: int, goes_on: bool
) -> None:
    halted = Halted(tmp_path, state, f"learner.zero={zero}", "learner.ranks=2")
    before = halted.run.config.read_text()
    assert torchrun._resume_point(halted.config(), MINE, halted.run) == halted.directory
    other = halted.config("learner.ranks=3")
    if goes_on:
        assert torchrun._resume_point(other, MINE, halted.run) == halted.directory
        assert halted.run.config.read_text() == dump(other)
        assert not list(halted.run.path.glob(".config*"))
    else:
        said = (
            r"learner\.ranks: 2 in the checkpoint, 3 now: put it back in mine\.yaml or the settings"
        )
        with pytest.raises(store.Refused, match=said):
            torchrun._resume_point(other, MINE, halted.run)
        assert halted.run.config.read_text() == before
        assert halted.directory.is_dir()


def test_another_configuration_takes_no_folder_without_a_checkpoint(tmp_path: Path) -> None:
    run, config = folder_of(tmp_path / "run"), load(Path("configs/quickstart.yaml"))
    assert torchrun._resume_point(config, MINE, run) is None
    assert run.config.read_text() == dump(config)
    assert torchrun._resume_point(config, MINE, run) is None, "an attempt that left no checkpoint"
    other = load(Path("configs/quickstart.yaml"), ["seed=1"])
    assert torchrun._resume_point(other, MINE, run) is None, "a start that failed before its step"
    run.metrics.write_text('{"what": "step", "step": 0}\n')
    with pytest.raises(RunError, match="another configuration and no checkpoint"):
        torchrun._resume_point(config, MINE, run)
