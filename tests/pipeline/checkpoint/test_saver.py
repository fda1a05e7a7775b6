"""One checkpoint from the cut to its commit: every rank's part, errors, silence."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.checkpoint import store
from pipeline.checkpoint.saver import Saver, free_bytes, size_of
from pipeline.coordinator.events import Checkpointed, Halt
from pipeline.system.durable_files import SYSTEM, write_durably
from pipeline.wire.messages import Save
from tests.pipeline.checkpoint import crashes
from tests.pipeline.coordinator.bench import Bench

ABOUT: dict[str, Any] = {"records": {}, "training_seconds": 0.0}


class Bureau:
    """A saver of a halted run, and what it reported."""

    def __init__(self, folder: Path, ranks: int = 2) -> None:
        self.bench = Bench()
        self.bench.begin()
        self.bench.tokens(0, 4)
        self.bench.handle(Halt())
        self.ended: list[Checkpointed] = []
        self._over = asyncio.Event()
        self.saver = Saver(self.bench.coordinator, folder, 3, ranks, self.note, {"seed": "0"})

    def note(self, event: Checkpointed) -> None:
        self.ended.append(event)
        self._over.set()

    def begin(self) -> Save:
        save = self.saver.begin_checkpoint(0, 0, ABOUT)
        assert save is not None
        return save

    async def end(self) -> Checkpointed:
        """Of the checkpoint that was begun last."""
        async with asyncio.timeout(20):
            await self._over.wait()
        self._over.clear()
        return self.ended[-1]


async def test_it_commits_when_every_rank_has_written(tmp_path: Path) -> None:
    bureau = Bureau(tmp_path)
    save = bureau.begin()
    directory = Path(save.directory)
    write_durably(SYSTEM, directory / "optimizer-0", b"momentum")
    bureau.saver.rank_saved(directory, 0, "")
    assert bureau.ended == []
    bureau.saver.rank_saved(directory, 1, "")
    assert await bureau.end() == Checkpointed(step=0)
    found, manifest, _ = store.newest(tmp_path)
    assert found.name == "step-000000"
    assert manifest["plugins"]["selector"] == "Scripted"
    [group] = store.load_state(found).groups
    assert [m.held for m in group.members] == [4, 0, 0]


@pytest.mark.fault("a rank cannot write its part of a checkpoint", part="checkpoints", by="file")
async def test_a_rank_that_cannot_write_gives_the_checkpoint_up(tmp_path: Path) -> None:
    """Promise: the checkpoint is given up with rank and reason, and nothing of it is left.
    Bound: at the rank's answer.
    """
    bureau = Bureau(tmp_path)
    save = bureau.begin()
    bureau.saver.rank_saved(Path(save.directory), 1, "no space left")
    assert bureau.ended == [Checkpointed(step=0, error="rank 1: no space left")]
    assert list(tmp_path.iterdir()) == []
    bureau.saver.rank_saved(Path(save.directory), 0, "")  # late: nobody waits for it
    assert len(bureau.ended) == 1


@pytest.mark.fault(
    "a rank never answers about its part of a checkpoint", part="checkpoints", by="file"
)
async def test_a_rank_that_never_answers_is_named(tmp_path: Path) -> None:
    """Promise: the checkpoint is given up, the rank is named, and nothing of it is left.
    Bound: when the coordinator says so, after `timeouts.checkpoint_s`.
    """
    bureau = Bureau(tmp_path)
    assert bureau.saver.waiting is None
    save = bureau.begin()
    bureau.saver.rank_saved(Path(save.directory), 0, "")
    assert bureau.saver.waiting == {1}
    bureau.saver.give_up(300.0)
    assert bureau.saver.waiting is None
    [ended] = bureau.ended
    assert ended.error == "no answer from ranks [1] within 300 s"
    assert list(tmp_path.iterdir()) == []
    bureau.saver.give_up(300.0)  # none is being written
    assert bureau.ended == [ended]


async def test_a_disk_that_does_not_answer_ends_the_wait_and_what_comes_late_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, done, commit = threading.Event(), threading.Event(), store.commit

    def late(*arguments: Any) -> Path:
        answer.wait(20)
        committed = commit(*arguments)
        done.set()
        return committed

    monkeypatch.setattr(store, "commit", late)
    bureau = Bureau(tmp_path, ranks=1)
    bureau.saver.rank_saved(Path(bureau.begin().directory), 0, "")
    bureau.saver.give_up(300.0)
    assert bureau.ended == [Checkpointed(step=0, error="it was not on disk within 300 s")]
    answer.set()
    await asyncio.to_thread(done.wait, 20)
    store.verify(store.committed(tmp_path)[0])
    await asyncio.sleep(0.1)
    assert len(bureau.ended) == 1, "nobody waits for it any more"


# --- room ---------------------------------------------------------------------------------------


@pytest.mark.fault("less room on the disk than a checkpoint takes", part="disk", by="file")
async def test_no_checkpoint_is_begun_without_room_and_the_next_one_is_tried(
    tmp_path: Path,
) -> None:
    """Promise: no rank is asked and nothing is written; the warning says how many bytes it needs
    and how many are free, the older checkpoint stays, and the next one is written once there is
    room.
    Bound: at the cut.
    """
    bureau = Bureau(tmp_path, ranks=1)
    free = [1000]
    saver = bureau.saver = Saver(
        bureau.bench.coordinator,
        tmp_path / "checkpoints",
        *(3, 1, bureau.note, {"seed": "0"}),
        least=1001,
        free=lambda directory: free[0],
    )
    assert saver.begin_checkpoint(0, 0, ABOUT) is None
    refused = (await bureau.end()).error
    assert f"it needs 1001 bytes, 1000 are free in {tmp_path}" in refused
    assert list(tmp_path.iterdir()) == []
    free[0] = 1001
    assert (await saved(bureau, b"x" * 100_000)).error == ""
    needed = int(1.2 * size_of(tmp_path / "checkpoints" / "step-000000"))
    assert needed > 120_000
    free[0] = needed - 1
    bureau.bench.core.step = 1
    assert saver.begin_checkpoint(1, 1, ABOUT) is None
    refused = (await bureau.end()).error
    assert f"it needs {needed} bytes, {needed - 1} are free" in refused
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000000"]
    free[0] = needed
    assert (await saved(bureau, b"x" * 100_000)).error == ""


async def test_free_bytes_are_those_of_the_disk_that_checkpoints_are_on(small_disk: Path) -> None:
    assert 0 < free_bytes(small_disk) <= SMALL


@pytest.mark.fault("the ledger is off when a checkpoint is due", part="checkpoints", by="file")
async def test_books_that_do_not_balance_are_never_written(tmp_path: Path) -> None:
    """Promise: nothing is written, and the error says by how many tokens.
    Bound: at the cut.
    """
    bureau = Bureau(tmp_path)
    bureau.bench.core.ledger.accounts["open"] -= 1
    assert bureau.saver.begin_checkpoint(0, 0, ABOUT) is None
    assert bureau.ended == [Checkpointed(step=0, error="the ledger is off by 1 tokens")]
    assert list(tmp_path.iterdir()) == []


async def test_it_is_named_by_the_step_of_its_state(tmp_path: Path) -> None:
    """Steps that were empty may have followed within the event that asked for the cut."""
    bureau = Bureau(tmp_path, ranks=1)
    bureau.bench.core.step = 5
    save = bureau.begin()
    assert save.step == 5
    bureau.saver.rank_saved(Path(save.directory), 0, "")
    assert await bureau.end() == Checkpointed(step=5)


# --- a full disk --------------------------------------------------------------------------------

SMALL = 256 * 1024
"""Bytes of the disk; the part of a rank that does not fit is larger."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with crashes.small_disk(tmp_path / "small", SMALL) as folder:
        yield folder


async def saved(bureau: Bureau, part: bytes) -> Checkpointed:
    """One rank writes its part as a learner does, and says how it went."""
    save = bureau.begin()
    directory, error = Path(save.directory), ""
    try:
        write_durably(SYSTEM, directory / "optimizer-0", part)
    except OSError as failure:
        error = str(failure)
    bureau.saver.rank_saved(directory, 0, error)
    return await bureau.end()


@pytest.mark.fault("the disk is full for a rank's part of a checkpoint", part="disk", by="file")
@pytest.mark.parametrize("step", [0, 1], ids=["same step", "next step"])
async def test_a_full_disk_is_told_the_old_one_stays_and_the_next_one_is_written(
    small_disk: Path, step: int
) -> None:
    """Promise: the error is told, the old checkpoint is whole and alone, and the next one that fits
    is written.
    Bound: at that checkpoint.
    """
    bureau = Bureau(small_disk, ranks=1)
    bureau.bench.core.step = 1
    assert await saved(bureau, b"old") == Checkpointed(step=1)
    bureau.bench.core.step = 1 + step
    for _ in range(2):
        failed = await saved(bureau, b"x" * 2 * SMALL)
        assert re.search("No space left|File too large", failed.error)
        assert [p.name for p in small_disk.iterdir()] == ["step-000001"]
        assert (store.newest(small_disk)[0] / "optimizer-0").read_bytes() == b"old"
    assert await saved(bureau, b"new") == Checkpointed(step=1 + step)
    assert (store.newest(small_disk)[0] / "optimizer-0").read_bytes() == b"new"


@pytest.mark.fault("the disk is full for the stage's part of a checkpoint", part="disk", by="file")
async def test_a_disk_that_is_full_for_the_stages_own_part_leaves_the_old_one(
    small_disk: Path,
) -> None:
    """Promise: the error is told, and the old checkpoint is whole and alone.
    Bound: at that checkpoint.
    """
    bureau = Bureau(small_disk, ranks=1)
    assert await saved(bureau, b"old") == Checkpointed(step=0)
    bureau.bench.core.stats.lengths = [2**31] * SMALL
    failed = await saved(bureau, b"fits")
    assert re.search(r"coordinator\.msgpack|No space left|File too large", failed.error)
    assert [p.name for p in small_disk.iterdir()] == ["step-000000"]
    assert (store.newest(small_disk)[0] / "optimizer-0").read_bytes() == b"old"


async def test_state_that_cannot_be_encoded_names_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bureau = Bureau(tmp_path, ranks=1)
    monkeypatch.setattr(type(bureau.bench.selector), "state", lambda self: object(), raising=False)
    assert bureau.saver.begin_checkpoint(0, 0, ABOUT) is None
    [ended] = bureau.ended
    assert ended.error.startswith("the state of selector Scripted: ")
    assert list(tmp_path.iterdir()) == []


async def test_the_best_step_that_has_a_checkpoint_is_never_pruned(tmp_path: Path) -> None:
    bureau = Bureau(tmp_path, ranks=1)
    core = bureau.bench.core
    core.settings = msgspec.structs.replace(core.settings, eval_best="accuracy")
    metrics = {2: 0.5, 3: 0.9, 4: 0.5, 5: 0.1, 6: 0.2, 7: 0.95, 8: 0.3}
    for step, accuracy in metrics.items():
        bureau.bench.coordinator.evaluations.history.append({"step": step, "accuracy": accuracy})
        if step == 7:
            continue  # the best of all, but its checkpoint failed
        core.step = step
        save = bureau.saver.begin_checkpoint(step, step, ABOUT)
        assert save is not None
        bureau.saver.rank_saved(Path(save.directory), 0, "")
        assert (await bureau.end()).error == ""
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [store.name_of(step) for step in (3, 5, 6, 8)]
