"""One checkpoint at a time: state now, every rank's part, then the commit in a thread."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.checkpoint import store
from pipeline.checkpoint.fingerprint import Fingerprint
from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import Checkpointed
from pipeline.wire.messages import Save

log = logging.getLogger("stage")
_MARGIN = 1.2  # by which a checkpoint may be larger than the one before it


class NoRoom(Exception):
    """The disk has less room than a checkpoint takes."""


def free_bytes(directory: Path) -> int:
    """What this user may still write there."""
    return shutil.disk_usage(directory).free


def size_of(directory: Path, pattern: str = "*") -> int:
    """Bytes of the files below it whose names fit."""
    return sum(path.stat().st_size for path in directory.rglob(pattern) if path.is_file())


class Saver:
    """`begin`, `rank_saved` and `give_up` are called by the stage; `done(event)` reports the end.

    Args:
        directory: where checkpoints lie.
        keep: how many of the newest stay.
        ranks: learner ranks that each write a part.
        made_for: what a resume is held against.
        least: bytes of one, at least; once one is on disk its size tells more.
        free: bytes that may still be written below a directory.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        directory: Path,
        keep: int,
        ranks: int,
        done: Callable[[Checkpointed], None],
        made_for: Fingerprint,
        least: int = 0,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._coordinator, self._checkpoints = coordinator, directory
        self._keep, self._ranks, self._done = keep, ranks, done
        self._made_for, self._least, self._free = made_for, least, free
        self._directory: Path | None = None
        self._step = 0
        self._waiting: set[int] = set()
        self._state: snapshot.Snapshot | None = None
        self._about: dict[str, Any] = {}
        self._commits: set[asyncio.Task[None]] = set()

    def begin_checkpoint(self, step: int, version: int, about: dict[str, Any]) -> Save | None:
        """Take the state of this very moment. Returns what every rank is to be told."""
        try:
            self._check_room()
            self._state = snapshot.take(self._coordinator)
            self._directory = store.begin_draft(self._checkpoints, step)
        except (snapshot.SnapshotError, NoRoom, OSError) as error:
            self._done(Checkpointed(step=step, error=str(error)))
            return None
        step = self._state.step  # further than asked for when empty steps followed at once
        self._step, self._waiting = step, set(range(self._ranks))
        self._about = {**about, "plugins": self._plugins(), "made_for": self._made_for}
        return Save(directory=str(self._directory), step=step, version=version)

    def _check_room(self) -> None:
        """Nothing is begun that cannot be ended. Raises NoRoom, or OSError."""
        older = store.committed(self._checkpoints)
        needed = int(_MARGIN * size_of(older[0])) if older else self._least
        there = next(p for p in (self._checkpoints, *self._checkpoints.parents) if p.is_dir())
        if (free := self._free(there)) < needed:
            raise NoRoom(
                f"it needs {needed} bytes, {free} are free in {there}; make room there (older "
                "checkpoints go only after a newer one is whole), the next one is tried again"
            )

    def _plugins(self) -> dict[str, str]:
        plugins = self._coordinator.core.plugins
        return {n: type(getattr(plugins, n)).__qualname__ for n in plugins.__struct_fields__}

    def rank_saved(self, directory: Path, rank: int, error: str) -> None:
        """A rank has written its part, or could not."""
        if directory != self._directory:
            return  # of a checkpoint that was given up
        if error:
            self._end(f"rank {rank}: {error}")
            return
        self._waiting.discard(rank)
        if not self._waiting:
            assert self._state is not None
            task = asyncio.ensure_future(self._commit(directory, self._state))
            self._commits.add(task)
            task.add_done_callback(self._commits.discard)

    def give_up(self, seconds: float) -> None:
        """It takes too long: nothing is waited for any more. None is being written: it is over."""
        if self._directory is None:
            return
        if self._waiting:
            self._end(f"no answer from ranks {sorted(self._waiting)} within {seconds:.0f} s")
        else:  # a thread is at it, and so is the disk: what it leaves the next one sweeps
            self._over(f"the disk has not taken it within {seconds:.0f} s")

    def _best(self) -> Path | None:
        """The checkpoint of the best step that has one: what was the best stays until the
        checkpoint of the better one is whole."""
        names = map(store.name_of, self._coordinator.evaluations.ranked())
        paths = (self._checkpoints / name for name in names)
        return next((path for path in paths if path.is_dir()), None)

    async def _commit(self, directory: Path, state: snapshot.Snapshot) -> None:
        error = ""
        try:
            await asyncio.to_thread(store.commit, directory, state, self._about)
        except (store.CheckpointError, OSError) as failure:
            error = str(failure)
        if directory != self._directory:
            log.warning("a checkpoint that was given up: %s", error or "is on disk after all")
            return
        if error:
            self._end(error)
            return
        try:
            best = self._best()
            await asyncio.to_thread(store.prune, self._checkpoints, self._keep, best=best)
        except OSError as error:  # the new one is there all the same
            log.warning("older checkpoints than the newest %d stay: %s", self._keep, error)
        self._end("")

    def _end(self, error: str) -> None:
        assert self._directory is not None
        if error:
            store.abandon(self._directory)
        self._over(error)

    def _over(self, error: str) -> None:
        self._directory = self._state = None
        self._done(Checkpointed(step=self._step, error=error))
