"""`darts train --resume` refuses by name, before anything starts, what it cannot go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launch.commands import resume
from launch.commands.resume import resume_run
from launch.commands.train import identify
from learner.deepspeed.lr_schedule import scheduled_lr
from pipeline.checkpoint import fingerprint, store
from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.system.durable_files import SYSTEM, write_durably
from pipeline.system.run_folder import RunFolder
from tests.launch.jobs.jobs import ROOT
from tests.pipeline.coordinator.world import World, plugins_of, settings_of


@pytest.fixture(scope="module")
def state() -> store.Snapshot:
    world = World(3, settings_of(), plugins_of("first_m"))
    world.start()
    world.run()
    return world.cuts[0]


class Halted:
    """A run with a checkpoint, of a copy of the quickstart's model; nothing of it runs."""

    def __init__(self, folder: Path, state: store.Snapshot, *overrides: str) -> None:
        self.model, self.data = folder / "model", folder / "train.jsonl"
        shutil.copytree(ROOT / "models" / "chain-sums", self.model)
        self.data.write_text('{"prompt": "1+1=", "answer": "2"}\n')
        self.overrides = [f"model={self.model}", f"data.train={self.data}", "data.held_out=0"]
        self.overrides += ["eval.every=0", *overrides]
        self.run = RunFolder(folder / "run")
        self.run.make_folders()
        identify(self.run, self.config())
        directory = store.begin_draft(self.run.checkpoints, state.step)
        write_durably(SYSTEM, directory / "optimizer-rank0.pt", b"momentum")
        about: dict[str, Any] = {"made_for": fingerprint.fingerprint_of(self.config())}
        self.directory = store.commit(directory, state, about)

    def config(self, *overrides: str) -> Config:
        return load(ROOT / "configs" / "quickstart.yaml", [*self.overrides, *overrides])

    def resumed(self, *overrides: str) -> int:
        """`darts train --resume RUN key=value`."""
        try:
            return resume_run(self.run.path, overrides)
        finally:
            self.run.release_lock()

    def edited(self, *overrides: str) -> int:
        """The user edits its config.yaml, and resumes it."""
        identify(self.run, self.config(*overrides))
        try:
            return resume_run(self.run.path)
        finally:
            self.run.release_lock()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """The checkpoints with which processes would have been started."""
    found: list[Path | None] = []

    def instead(config: Config, run: RunFolder, resume: Path | None) -> int:
        run.release_lock()
        found.append(resume)
        return 0

    monkeypatch.setattr(resume, "carry_out", instead)
    return found


@pytest.mark.fault("other settings at a resume", part="checkpoints", by="file")
@pytest.mark.parametrize(
    "edit, said",
    [
        ("group.size=4", "group.size: 8 in the checkpoint, 4 now"),
        ("seed=3", "seed: 0 in the checkpoint, 3 now"),
        ("selector=shortest", 'selector: "dual_end" in the checkpoint, "shortest" now'),
        ("selector.dual_end.longest=2", "selector.dual_end.longest: 1 in the checkpoint, 2 now"),
        ("learner.betas=[0.9, 0.99]", "learner.betas: [0.9,0.95] in the checkpoint, [0.9,0.99]"),
        ("learner.zero=1", "learner.zero: 0 in the checkpoint, 1 now"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path,
    state: store.Snapshot,
    started: list[Path | None],
    capsys: pytest.CaptureFixture[str],
    edit: str,
    said: str,
) -> None:
    """Promise: status 2 with key, old and new value; the checkpoint stays whole, and goes on with
    the old settings.
    Bound: before anything starts.
    """
    halted = Halted(tmp_path, state)
    assert halted.edited(edit) == 2
    text = capsys.readouterr().err
    assert said in text
    assert f"put it back in {halted.run.path}/config.yaml" in text
    assert started == []
    assert halted.directory.is_dir(), "it is whole, and stays"
    assert halted.edited() == 0
    assert started == [halted.directory]


@pytest.mark.parametrize(
    "edit",
    [
        "step.count=90",
        "engine.count=2",
        "checkpoint.every=5",
        "learner.lr=1e-5",
        "timeouts.log_wait_s=9",
    ],
)
def test_settings_that_say_only_how_it_goes_on_may_change(
    tmp_path: Path, state: store.Snapshot, started: list[Path | None], edit: str
) -> None:
    halted = Halted(tmp_path, state)
    assert halted.edited(edit) == 0
    assert started == [halted.directory]


def at_its_end(state: store.Snapshot) -> tuple[str, str]:
    """Settings of a run whose last step is that of the checkpoint."""
    return f"step.count={state.step}", "learner.warmup_steps=1"


def test_settings_of_the_command_change_the_runs_own_and_are_noted(
    tmp_path: Path,
    state: store.Snapshot,
    started: list[Path | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    halted = Halted(tmp_path, state, "learner.schedule=linear", *at_its_end(state))
    assert halted.resumed("step.count=300", "learner.lr=2e-4") == 0
    now = load(halted.run.config)
    assert (now.step.count, now.learner.lr, now.learner.schedule) == (300, 2e-4, "linear")
    said = capsys.readouterr().err
    assert f"changed: step.count: {state.step} -> 300" in said
    rate = scheduled_lr(now.learner, state.version, 300)
    assert f"learning rate: {rate:.3g} at step {state.step + 1} of 300" in said
    assert "it would have been 0" in said, "the schedule was at its end"
    [entry] = json.loads(halted.run.about.read_text())["continued"]
    assert entry["step"] == state.step
    assert entry["changed"] == [f"step.count: {state.step} -> 300", "learner.lr: 0.0001 -> 0.0002"]
    assert halted.resumed() == 0, "the next one needs them no more"
    assert "changed" not in capsys.readouterr().err
    assert len(started) == 2


@pytest.mark.parametrize(
    "override, status, said",
    [
        ("group.size=4", 2, "config.yaml or the settings of this command"),
        ("step.count=1", 2, "steps are done, and step.count is 1: set it to at least"),
        ("stp.count=1", 2, "override stp.count=1: stp.count: unknown key"),
    ],
)
def test_what_the_command_may_not_change_is_named_and_changes_nothing(
    tmp_path: Path,
    state: store.Snapshot,
    started: list[Path | None],
    capsys: pytest.CaptureFixture[str],
    override: str,
    status: int,
    said: str,
) -> None:
    assert state.step > 1
    halted = Halted(tmp_path, state, "learner.warmup_steps=1")
    before = halted.run.config.read_text()
    assert halted.resumed(override) == status
    assert said in capsys.readouterr().err
    assert (halted.run.config.read_text(), started) == (before, [])


@pytest.mark.fault("a resume of a run that has finished", part="people", by="file")
def test_a_finished_run_is_told_so_and_continues_with_more_steps(
    tmp_path: Path,
    state: store.Snapshot,
    started: list[Path | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Promise: status 2 with the command that makes it longer; with it the run continues from its
    last checkpoint.
    Bound: before anything starts.
    """
    halted = Halted(tmp_path, state, *at_its_end(state))
    halted.run.result.write_text(json.dumps({"steps": state.step}))
    assert halted.resumed() == 2
    said = capsys.readouterr().err
    assert f"has finished its {state.step} steps" in said
    assert f"--resume {halted.run.path} step.count={2 * state.step}" in said
    assert halted.resumed(f"step.count={2 * state.step}") == 0
    assert started == [halted.directory]


def test_a_run_that_finished_without_a_checkpoint_is_told_that_it_has_none(
    tmp_path: Path, state: store.Snapshot, capsys: pytest.CaptureFixture[str]
) -> None:
    halted = Halted(tmp_path, state, "checkpoint.every=0", *at_its_end(state))
    halted.run.result.write_text(json.dumps({"steps": state.step}))
    shutil.rmtree(halted.directory)
    assert halted.resumed("step.count=300") == 2
    assert "without a checkpoint (checkpoint.every: 0)" in capsys.readouterr().err


@pytest.mark.fault("another tokenizer or model at a resume", part="checkpoints", by="file")
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_another_tokenizer_or_model_is_refused_by_name(
    tmp_path: Path,
    state: store.Snapshot,
    started: list[Path | None],
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """Promise: status 2, and what differs is named.
    Bound: before anything starts.
    """
    halted = Halted(tmp_path, state)
    path = halted.model / name
    path.write_text(path.read_text() + "\n")
    assert halted.edited() == 2
    what = "tokenizer" if name == "tokenizer.json" else "model"
    assert f"files of the {what}: " in capsys.readouterr().err
    assert started == []


@pytest.mark.fault("an edited data set at a resume", part="checkpoints", by="file")
def test_an_edited_data_set_is_refused_and_one_that_was_moved_is_not(
    tmp_path: Path,
    state: store.Snapshot,
    started: list[Path | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Promise: status 2 by its key; the same content at another path goes on.
    Bound: before anything starts.
    """
    halted = Halted(tmp_path, state)
    moved = halted.data.rename(tmp_path / "moved.jsonl")
    assert halted.edited(f"data.train={moved}") == 0
    moved.write_text('{"prompt": "1+1=", "answer": "3"}\n')
    assert halted.edited(f"data.train={moved}") == 2
    assert "data.train: " in capsys.readouterr().err
    assert len(started) == 1


@pytest.mark.fault("another number of learner ranks above ZeRO 0", part="checkpoints", by="file")
@pytest.mark.parametrize("zero, status", [(0, 0), (1, 2), (2, 2), (3, 2)])
def test_another_number_of_ranks_goes_on_where_each_has_the_whole_state_else_is_refused(
    tmp_path: Path,
    state: store.Snapshot,
    started: list[Path | None],
    capsys: pytest.CaptureFixture[str],
    zero: int,
    status: int,
) -> None:
    """Promise: status 2 with both numbers and the reason; at ZeRO 0 it goes on.
    Bound: before anything starts.
    """
    halted = Halted(tmp_path, state, f"learner.zero={zero}", "learner.ranks=2")
    assert halted.edited("learner.ranks=3") == status
    assert started == [halted.directory] * (not status)
    if status:
        text = capsys.readouterr().err
        assert "learner.ranks: 2 in the checkpoint, 3 now" in text
        assert "above ZeRO 0 each rank has its own part" in text


def test_damage_is_named_and_the_one_before_is_used(
    tmp_path: Path,
    state: store.Snapshot,
    started: list[Path | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    halted = Halted(tmp_path, state)
    newer = halted.directory.with_name("step-000099")
    shutil.copytree(halted.directory, newer)
    (newer / "optimizer-rank0.pt").write_bytes(b"momentun")
    assert halted.edited() == 0
    assert f"skipped a damaged checkpoint: {newer}/optimizer-rank0.pt" in capsys.readouterr().err
    assert started == [halted.directory]
    (halted.directory / store.MANIFEST).unlink()
    assert halted.edited() == 5
    text = capsys.readouterr().err
    assert "MANIFEST.json" in text
    assert f"set aside: corrupt-{halted.directory.name}, corrupt-{newer.name}" in text
    assert len(started) == 1
