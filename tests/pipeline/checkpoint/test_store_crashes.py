"""A crash at any moment of a checkpoint leaves the old state or the new one; each fsync counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pipeline.checkpoint import store
from pipeline.checkpoint.store import CheckpointError
from pipeline.coordinator.snapshot import Snapshot
from pipeline.system.durable_files import Disk, write_durably
from tests.pipeline.checkpoint.crashes import (
    COMMITTED,
    Quick,
    Recorder,
    State,
    forgotten,
    states,
    syncs,
    wrong,
)
from tests.pipeline.coordinator.world import World, plugins_of, settings_of


@pytest.fixture(scope="module")
def state() -> Snapshot:
    world = World(3, settings_of(), plugins_of("first_m"))
    world.start()
    world.run()
    return world.cuts[0]


def save(folder: Path, state: Snapshot, step: int, content: str, disk: Disk) -> None:
    """As stage and ranks do, and the pruning after it. `content` tells one from another."""
    checkpoints = folder / "checkpoints"
    directory = store.begin_draft(checkpoints, step, disk)
    disk.mkdir(directory / "model")
    write_durably(disk, directory / "model" / "weights", content.encode() * 8)
    write_durably(disk, directory / "optimizer", b"momentum")
    store.commit(directory, msgspec.structs.replace(state, step=step), {}, disk)
    if isinstance(disk, Recorder):
        disk.mark(COMMITTED + content)
    store.prune(checkpoints, 2, disk)


def content_of(directory: Path) -> str:
    return (directory / "model" / "weights").read_text()[0]


def first_ever(folder: Path, state: Snapshot) -> tuple[Recorder, str]:
    recorder = Recorder(folder)
    save(folder, state, 2, "a", recorder)
    return recorder, "-a"


def before(folder: Path, state: Snapshot) -> None:
    for step, content in ((1, "0"), (2, "a")):
        save(folder, state, step, content, Quick())


def next_step(folder: Path, state: Snapshot) -> tuple[Recorder, str]:
    before(folder, state)
    recorder = Recorder(folder)
    save(folder, state, 3, "b", recorder)
    return recorder, "ab"


def same_step(folder: Path, state: Snapshot) -> tuple[Recorder, str]:
    before(folder, state)
    recorder = Recorder(folder)
    save(folder, state, 2, "b", recorder)
    return recorder, "ab"


def fsync_failed(folder: Path, state: Snapshot) -> tuple[Recorder, str]:
    """The one after the commit of a replacement; the run goes on to its next checkpoint."""
    before(folder, state)
    recorder = Recorder(folder, broken=LAST_OF_COMMIT)
    with pytest.raises(CheckpointError, match="checkpoints: Input/output error"):
        save(folder, state, 2, "b", recorder)
    save(folder, state, 3, "c", recorder)
    return recorder, "abc"


LAST_OF_COMMIT = 6
"""weights, optimizer, state, manifest, model/, the temporary directory: then checkpoints/."""
SCENARIOS = (first_ever, next_step, same_step, fsync_failed)
Scenario = Callable[[Path, Snapshot], tuple[Recorder, str]]


@pytest.mark.fault("a crash at any operation of a checkpoint", part="checkpoints", by="file")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_crash_at_any_moment_leaves_exactly_the_old_or_the_new(
    tmp_path: Path, state: Snapshot, scenario: Scenario
) -> None:
    """Every prefix of the disk operations, and many parts lost of what was not fsynced.

    Promise: resume finds exactly the old state or the new one, never an older one than was
    reported, and the run goes on from there.
    Bound: every prefix of the operations, with many choices of what was not yet on the disk.
    """
    (tmp_path / "run").mkdir()
    recorder, allowed = scenario(tmp_path / "run", state)
    number = 0
    for number, found in enumerate(states(recorder)):
        folder = tmp_path / str(number)
        why = wrong(found, folder, allowed, content_of)
        assert why == "", f"{why}\nafter a crash that leaves {sorted(found.files)}"
        save(folder, state, 4, "z", Quick())  # and the run goes on from there
        assert content_of(store.newest(folder / "checkpoints")[0]) == "z"
    print(f"{scenario.__name__}: {len(recorder.log)} operations, {number + 1} states")
    assert number > 50


@pytest.mark.fault("a crash of the resume after a crash", part="checkpoints", by="file")
def test_a_crash_of_the_resume_that_tidies_up_after_a_crash_changes_nothing(
    tmp_path: Path, state: Snapshot
) -> None:
    """Promise: the next resume finds the old state or the new one all the same.
    Bound: every prefix of its operations.
    """
    (tmp_path / "run").mkdir()
    recorder, allowed = same_step(tmp_path / "run", state)
    again = 0
    for number, found in enumerate(states(recorder)):
        found.put(folder := tmp_path / str(number))
        resume = Recorder(folder)
        store.newest(folder / "checkpoints", resume)
        for second in states(resume) if resume.log else ():
            again += 1
            second = State(second.files, found.said)
            assert wrong(second, tmp_path / f"{number}-{again}", allowed, content_of) == ""
    assert again > 100


@pytest.mark.fault("a checkpoint forgets one fsync", part="checkpoints", by="file")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_leaving_out_any_single_fsync_is_caught(
    tmp_path: Path, state: Snapshot, scenario: Scenario
) -> None:
    """Promise: the enumeration of crashes notices each that is left out.
    Bound: every fsync.
    """
    (tmp_path / "run").mkdir()
    recorder, allowed = scenario(tmp_path / "run", state)
    assert forgotten(recorder, tmp_path, allowed, content_of) == []
    assert len(syncs(recorder)) >= LAST_OF_COMMIT + 1
