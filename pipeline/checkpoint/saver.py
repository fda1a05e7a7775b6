"""Writes one checkpoint at a time: the state now, every rank's part, a commit in a thread."""

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
_MARGIN = 1.2  # a checkpoint may be this much larger than the one before it


class NoRoom(Exception):
    """The disk has less room than a checkpoint needs."""


def free_bytes(directory: Path) -> int:
    """Return the bytes that this user may still write there."""
    return shutil.disk_usage(directory).free


def size_of(directory: Path, pattern: str = "*") -> int:
    """Sum the bytes of files below a directory whose names match."""
    return sum(path.stat().st_size for path in directory.rglob(pattern) if path.is_file())


class Saver:
    """The stage calls `begin_checkpoint`, `rank_saved`, `give_up`; `done(event)` reports the end.

    Args:
        directory: holds the checkpoints.
        keep: number of newest checkpoints to keep.
        ranks: number of learner ranks; each writes a part.
        made_for: what a resume is compared with.
        least: expected bytes of the first checkpoint; later ones use the size of the last.
        free: returns the bytes that may still be written below a directory.
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

    @property
    def waiting(self) -> frozenset[int] | None:
        """Ranks whose part is not written yet; None while no checkpoint is being written."""
        return frozenset(self._waiting) if self._directory is not None else None

    def begin_checkpoint(self, step: int, version: int, about: dict[str, Any]) -> Save | None:
        """Take the present state. Returns the message for every rank, or None if it failed."""
        try:
            self._check_room()
            self._state = snapshot.take(self._coordinator)
            self._directory = store.begin_draft(self._checkpoints, step)
        except (snapshot.SnapshotError, NoRoom, OSError) as error:
            self._done(Checkpointed(step=step, error=str(error)))
            return None
        step = self._state.step  # later than requested if empty steps followed at once
        self._step, self._waiting = step, set(range(self._ranks))
        self._about = {**about, "plugins": self._plugins(), "made_for": self._made_for}
        return Save(directory=str(self._directory), step=step, version=version)

    def _check_room(self) -> None:
        """Check that the disk has room for a checkpoint. Raises NoRoom, or OSError."""
        older = store.committed(self._checkpoints)
        needed = int(_MARGIN * size_of(older[0])) if older else self._least
        there = next(p for p in (self._checkpoints, *self._checkpoints.parents) if p.is_dir())
        if (free := self._free(there)) < needed:
            raise NoRoom(
                f"it needs {needed} bytes, {free} are free in {there}; make room there (older "
                "checkpoints are removed only after a new one is complete); the next checkpoint "
                "is tried again"
            )

    def _plugins(self) -> dict[str, str]:
        plugins = self._coordinator.core.plugins
        return {n: type(getattr(plugins, n)).__qualname__ for n in plugins.__struct_fields__}

    def rank_saved(self, directory: Path, rank: int, error: str) -> None:
        """A rank has written its part, or could not."""
        if directory != self._directory:
            return  # from a checkpoint that was given up
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
        """Give up a checkpoint that takes too long; does nothing if none is being written."""
        if self._directory is None:
            return
        if self._waiting:
            self._end(f"no answer from ranks {sorted(self._waiting)} within {seconds:.0f} s")
        else:  # a thread still writes: the next checkpoint removes what it leaves
            self._over(f"it was not on disk within {seconds:.0f} s")

    def _best(self) -> Path | None:
        """Return the checkpoint of the best step that has one: it stays until that of a better
        step is complete."""
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
            log.warning("a checkpoint that was given up: %s", error or "is on disk now")
            return
        if error:
            self._end(error)
            return
        try:
            best = self._best()
            await asyncio.to_thread(store.prune, self._checkpoints, self._keep, best=best)
        except OSError as error:  # the new one is complete
            log.warning("could not remove old checkpoints (keeping %d): %s", self._keep, error)
        self._end("")

    def _end(self, error: str) -> None:
        assert self._directory is not None
        if error:
            store.abandon(self._directory)
        self._over(error)

    def _over(self, error: str) -> None:
        self._directory = self._state = None
        self._done(Checkpointed(step=self._step, error=error))
