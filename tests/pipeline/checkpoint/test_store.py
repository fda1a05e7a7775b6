"""A checkpoint is whole or not there: damage, trust, replacement, pruning.

Crashes at every operation are in `test_checkpoint_crashes`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.checkpoint import store
from pipeline.checkpoint.store import CheckpointError
from pipeline.coordinator import snapshot
from pipeline.coordinator.snapshot import Snapshot
from pipeline.system.durable_files import SYSTEM, write_durably
from tests.pipeline.coordinator.world import World, plugins_of, settings_of

ABOUT: dict[str, Any] = {"records": {"metrics.jsonl": 12}, "training_seconds": 1.5}


@pytest.fixture(scope="module")
def states() -> list[Snapshot]:
    """States of a real run, at steps 0 (halted), 2 and 3."""
    halted = World(3, settings_of(), plugins_of("concise_confident"))
    halted.start()
    halted.run(halt_at=120)
    whole = World(5, settings_of(), plugins_of("concise_confident"))
    whole.start()
    whole.run()
    found = {state.step: state for state in [*halted.cuts, *whole.cuts]}
    return [found[step] for step in sorted(found)]


def save(checkpoints: Path, state: Snapshot, step: int | None = None, content: str = "w") -> Path:
    state = msgspec.structs.replace(state, step=state.step if step is None else step)
    directory = store.begin_draft(checkpoints, state.step)
    SYSTEM.mkdir(directory / "model")
    write_durably(SYSTEM, directory / "model" / "weights", content.encode() * 1000)
    write_durably(SYSTEM, directory / "optimizer-0", b"momentum")
    return store.commit(directory, state, ABOUT)


def content_of(directory: Path) -> str:
    return (directory / "model" / "weights").read_text()[0]


def test_what_was_committed_verifies_and_loads_equal(
    tmp_path: Path, states: list[Snapshot]
) -> None:
    directory = save(tmp_path, states[-1])
    manifest = store.verify(directory)
    assert (manifest["step"], manifest["training_seconds"]) == (states[-1].step, 1.5)
    assert set(manifest["files"]) == {"coordinator.msgpack", "model/weights", "optimizer-0"}
    assert store.load_state(directory) == states[-1]


@pytest.mark.parametrize("selector", ["all", "first_m", "concise_confident", "dual_end"])
def test_saved_loaded_and_saved_again_it_is_the_same_bytes(selector: str) -> None:
    for halt_at in (40, 90, 150, 220):
        world = World(halt_at, settings_of(), plugins_of(selector))
        world.start()
        world.run(halt_at=halt_at)
        for state in world.cuts:
            written = msgspec.msgpack.encode(state)
            again = World(0, settings_of(), plugins_of(selector)).coordinator
            loaded = msgspec.msgpack.decode(written, type=Snapshot)
            snapshot.restore(again, loaded, 100.0)
            again.core.version = state.version  # which the learner says
            assert msgspec.msgpack.encode(snapshot.take(again)) == written


def test_the_newest_whole_one_is_found(tmp_path: Path, states: list[Snapshot]) -> None:
    for step in (2, 10, 9):
        save(tmp_path, states[-1], step)
    directory, manifest, complaints = store.newest(tmp_path)
    assert (directory.name, manifest["step"], complaints) == ("step-000010", 10, [])


FILES = ["MANIFEST.json", "coordinator.msgpack", "model/weights", "optimizer-0"]


OF_STEP_1 = [f"step-000001/{name}" for name in FILES]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "linked":  # to the very content, where somebody else may change it
        elsewhere = next(p for p in path.parents if p.name.startswith("step-")).with_name("there")
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    else:
        at = int(how.split()[1]) * (len(content) - 1) // 100
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


@pytest.mark.fault(
    "a file of a checkpoint is deleted, cut, emptied, linked or has a bit flipped",
    part="checkpoints",
    by="file",
)
@pytest.mark.parametrize(
    "how", ["deleted", "truncated", "emptied", "linked", "flip 0", "flip 50", "flip 100"]
)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_falls_back_loudly_to_the_one_before(
    tmp_path: Path, states: list[Snapshot], name: str, how: str
) -> None:
    """Promise: the one before is used, the file is named, and the damaged one is kept as
    `corrupt-...`.
    Bound: before anything is loaded.
    """
    save(tmp_path, states[-1], 1)
    damage(save(tmp_path, states[-1], 2) / name, how)
    directory, _, complaints = store.newest(tmp_path)
    assert directory.name == "step-000001"
    [complaint] = complaints
    assert f"step-000002/{name}" in complaint
    assert (tmp_path / "corrupt-step-000002").is_dir(), "kept for whoever wants to look"


def test_no_bit_of_the_manifest_can_flip_unseen(tmp_path: Path, states: list[Snapshot]) -> None:
    manifest = save(tmp_path, states[-1]) / store.MANIFEST
    content = manifest.read_bytes()
    meant = json.loads(content)
    for at in range(0, len(content), 3):
        manifest.write_bytes(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])
        try:
            read = store.verify(manifest.parent)
        except CheckpointError:
            continue
        assert read == meant, f"byte {at}"


def test_without_a_whole_one_it_is_an_error_never_a_new_beginning(
    tmp_path: Path, states: list[Snapshot]
) -> None:
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        store.newest(tmp_path)
    damage(save(tmp_path, states[-1], 2) / "optimizer-0", "deleted")
    with pytest.raises(CheckpointError, match="no complete checkpoint\n.*optimizer-0: missing"):
        store.newest(tmp_path)


def test_the_same_step_can_be_damaged_twice(tmp_path: Path, states: list[Snapshot]) -> None:
    save(tmp_path, states[-1], 1)
    for _ in range(2):
        damage(save(tmp_path, states[-1], 2) / "optimizer-0", "deleted")
        assert store.newest(tmp_path)[0].name == "step-000001"
    kept = sorted(p.name for p in tmp_path.glob("corrupt-*"))
    assert kept == ["corrupt-step-000002", "corrupt-step-000002-2"]


@pytest.mark.fault("a file or link that the manifest does not know", part="checkpoints", by="file")
@pytest.mark.parametrize("what", ["a file", "a file in a folder", "a link", "a folder linked"])
def test_what_the_manifest_does_not_know_is_damage(
    tmp_path: Path, states: list[Snapshot], what: str
) -> None:
    """Promise: the checkpoint counts as damaged, the file is named, and the one before is used.
    Bound: before anything is loaded.
    """
    save(tmp_path, states[-1], 1)
    directory = save(tmp_path, states[-1], 2)
    extra = directory / "model" / "modeling.py" if "in a" in what else directory / "extra"
    if what == "a folder linked":
        (directory / "model").rename(tmp_path / "model")
        extra = directory / "model"
        extra.symlink_to(tmp_path / "model")
    elif what == "a link":
        extra.symlink_to(directory / "optimizer-0")
    else:
        write_durably(SYSTEM, extra, b"import os")
    found, _, [complaint] = store.newest(tmp_path)
    assert found.name == "step-000001"
    assert complaint.startswith(f"{extra}: ")


def test_a_checkpoint_that_is_a_link_is_damage(tmp_path: Path, states: list[Snapshot]) -> None:
    save(tmp_path / "c", states[-1], 1)
    directory = save(tmp_path / "c", states[-1], 2)
    directory.rename(tmp_path / "elsewhere")
    directory.symlink_to(tmp_path / "elsewhere")
    found, _, [complaint] = store.newest(tmp_path / "c")
    assert found.name == "step-000001"
    assert "step-000002: is a symbolic link" in complaint


@pytest.mark.fault("every checkpoint is damaged", part="checkpoints", by="file")
def test_when_all_are_damaged_each_is_named_and_nothing_is_begun_anew(
    tmp_path: Path, states: list[Snapshot]
) -> None:
    """Promise: it is an error that names each damaged file, this time and the next; nothing begins
    anew.
    Bound: before anything is loaded.
    """
    for step, name in ((1, "optimizer-0"), (2, "model/weights"), (3, store.MANIFEST)):
        damage(save(tmp_path, states[-1], step) / name, "flip 50")
    with pytest.raises(CheckpointError) as found:
        store.newest(tmp_path)
    text = str(found.value)
    assert "step-000003/MANIFEST.json" in text
    assert "step-000002/model/weights" in text
    assert "step-000001/optimizer-0" in text
    aside = "set aside: corrupt-step-000001, corrupt-step-000002, corrupt-step-000003"
    assert aside in text
    with pytest.raises(CheckpointError, match=aside):  # the second time too
        store.newest(tmp_path)


# --- whose it is -------------------------------------------------------------------------------


@pytest.mark.fault("others may write a checkpoint", part="checkpoints", by="file")
@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("name", [".", "step-000001", "step-000001/model", *OF_STEP_1])
def test_what_others_may_write_is_refused_with_the_cure_and_stays_where_it_is(
    tmp_path: Path, states: list[Snapshot], name: str, mode: int
) -> None:
    """Promise: it is refused with the `chmod` that cures it, stays where it is, and is used after
    the cure.
    Bound: before anything is loaded.
    """
    checkpoints = tmp_path / "my c"
    save(checkpoints, states[-1], 1)
    path = checkpoints / name
    path.chmod(path.stat().st_mode | mode)
    cure = f"other users can write it.*chmod -R go-w '{checkpoints}'$"
    with pytest.raises(store.Refused, match=cure):
        store.newest(checkpoints)
    path.chmod(path.stat().st_mode & ~0o022)
    assert store.newest(checkpoints)[0].name == "step-000001"


@pytest.mark.fault("a file of a checkpoint belongs to somebody else", part="checkpoints", by="file")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_what_belongs_to_somebody_else_is_refused_with_the_cure(
    tmp_path: Path, states: list[Snapshot]
) -> None:
    """Promise: it is refused with the `chown` that cures it.
    Bound: before anything is loaded.
    """
    optimizer = save(tmp_path, states[-1], 1) / "optimizer-0"
    os.chown(optimizer, 65534, -1)
    with pytest.raises(store.Refused, match=r"optimizer-0: belongs to user 65534.*chown -R 0"):
        store.newest(tmp_path)


def test_a_loose_umask_makes_no_checkpoint_that_is_refused(
    tmp_path: Path, states: list[Snapshot]
) -> None:
    before = os.umask(0)
    try:
        directory = store.begin_draft(tmp_path / "c", 1)
        write_durably(SYSTEM, directory / "optimizer-0", b"momentum")
        store.commit(directory, msgspec.structs.replace(states[-1], step=1), ABOUT)
    finally:
        os.umask(before)
    assert store.newest(tmp_path / "c")[0].name == "step-000001"


def test_looking_at_a_live_run_changes_nothing(tmp_path: Path, states: list[Snapshot]) -> None:
    save(tmp_path, states[-1], 1)
    damage(save(tmp_path, states[-1], 2) / "optimizer-0", "deleted")
    directory = store.begin_draft(tmp_path, 3)
    before = sorted(tmp_path.rglob("*"))
    assert store.peek_newest(tmp_path).name == "step-000001"
    assert sorted(tmp_path.rglob("*")) == before
    # in the moment between the renames of a replacement
    (tmp_path / "step-000001").rename(tmp_path / ".old-step-000001")
    assert store.peek_newest(tmp_path).name == ".old-step-000001"
    assert directory.is_dir()
    for left in tmp_path.glob(".old-*"):
        damage(left / "optimizer-0", "deleted")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        store.peek_newest(tmp_path)


# --- other manifests ---------------------------------------------------------------------------


@pytest.mark.fault("a sealed manifest names a file outside", part="checkpoints", by="file")
def test_a_path_that_leads_outside_is_refused(tmp_path: Path, states: list[Snapshot]) -> None:
    """Promise: it is refused by name.
    Bound: before the file is used.
    """
    directory = save(tmp_path / "c", states[-1])
    secret = tmp_path / "secret"
    secret.write_text("x")
    manifest = json.loads((directory / store.MANIFEST).read_bytes())
    manifest["files"]["../../secret"] = [1, store.file_checksum(secret)]
    manifest["checksum"] = store._seal(manifest)
    (directory / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="secret is outside the checkpoint"):
        store.verify(directory)


@pytest.mark.fault("a checkpoint of another format", part="checkpoints", by="file")
def test_another_format_is_refused_by_number(tmp_path: Path, states: list[Snapshot]) -> None:
    """Promise: it is refused with both numbers.
    Bound: before anything is loaded.
    """
    directory = save(tmp_path, states[-1])
    manifest = json.loads((directory / store.MANIFEST).read_bytes()) | {"format": 99}
    manifest["checksum"] = store._seal(manifest)
    (directory / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="format 99, this darts reads 3"):
        store.verify(directory)


def test_prune_leaves_the_newest_and_never_fewer_than_two(
    tmp_path: Path, states: list[Snapshot]
) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, states[-1], step)
    store.prune(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-000002",
        "step-000003",
        "step-000004",
    ]
    store.prune(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003", "step-000004"]


def test_prune_leaves_the_best_however_old_it_is(tmp_path: Path, states: list[Snapshot]) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, states[-1], step)
    store.prune(tmp_path, 2, best=tmp_path / "step-000001")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-000001",
        "step-000003",
        "step-000004",
    ]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path, states: list[Snapshot]) -> None:
    save(tmp_path, states[-1], 2, "a")
    save(tmp_path, states[-1], 2, "b")
    assert content_of(store.newest(tmp_path)[0]) == "b"
    assert [p.name for p in tmp_path.iterdir()] == ["step-000002"]


def test_state_of_a_plugin_that_cannot_be_written_is_an_error_of_the_checkpoint(
    tmp_path: Path, states: list[Snapshot]
) -> None:
    odd = msgspec.structs.replace(states[-1], plugins={"selector": object()})
    with pytest.raises(CheckpointError, match="object"):
        save(tmp_path, odd)
    assert list(tmp_path.iterdir()) == []


def test_the_directories_are_for_their_owner_alone(tmp_path: Path, states: list[Snapshot]) -> None:
    directory = save(tmp_path / "c", states[-1])
    assert os.stat(tmp_path / "c").st_mode & 0o777 == 0o700
    assert os.stat(directory).st_mode & 0o777 == 0o700
