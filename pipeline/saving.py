"""One checkpoint at a time: state now, every rank's part, then the commit in a thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import checkpoint, snapshot
from pipeline.coordinator import Coordinator
from pipeline.events import Checkpointed
from pipeline.fingerprint import Fingerprint
from pipeline.messages import Save

log = logging.getLogger("stage")
LIMIT_S = 300.0
"""A checkpoint that a rank has not written by then is given up."""


class Saver:
    """`begin` and `rank_saved` are called by the stage; `done(event)` reports the end.

    Args:
        directory: where checkpoints lie.
        keep: how many of the newest stay.
        ranks: learner ranks that each write a part.
        made_for: what a resume is held against.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        directory: Path,
        keep: int,
        ranks: int,
        done: Callable[[Checkpointed], None],
        made_for: Fingerprint,
    ) -> None:
        self._coordinator, self._checkpoints = coordinator, directory
        self._keep, self._ranks, self._done = keep, ranks, done
        self._made_for = made_for
        self._directory: Path | None = None
        self._step = 0
        self._waiting: set[int] = set()
        self._state: snapshot.Snapshot | None = None
        self._about: dict[str, Any] = {}
        self._deadline = 0.0
        self._commits: set[asyncio.Task[None]] = set()

    def begin(self, step: int, version: int, about: dict[str, Any]) -> Save | None:
        """Take the state of this very moment. Returns what every rank is to be told."""
        try:
            self._state = snapshot.take(self._coordinator)
            self._directory = checkpoint.begin(self._checkpoints, step)
        except (snapshot.SnapshotError, OSError) as error:
            self._done(Checkpointed(step=step, error=str(error)))
            return None
        step = self._state.step  # further than asked for when empty steps followed at once
        self._step, self._waiting = step, set(range(self._ranks))
        self._about = {**about, "plugins": self._plugins(), "made_for": self._made_for}
        self._deadline = time.monotonic() + LIMIT_S
        return Save(directory=str(self._directory), step=step, version=version)

    def _plugins(self) -> dict[str, str]:
        seams = self._coordinator.core.seams
        return {n: type(getattr(seams, n)).__qualname__ for n in seams.__struct_fields__}

    def rank_saved(self, directory: Path, rank: int, error: str) -> None:
        """A rank has written its part, or could not."""
        if directory != self._directory:
            return  # of a checkpoint that was given up
        if error:
            self._end(f"rank {rank}: {error}")
            return
        self._waiting.discard(rank)
        if not self._waiting:
            task = asyncio.ensure_future(self._commit())
            self._commits.add(task)
            task.add_done_callback(self._commits.discard)

    def check(self, now: float) -> None:
        """Give up on a checkpoint that takes too long."""
        if self._directory is not None and self._waiting and now > self._deadline:
            self._end(f"no answer from ranks {sorted(self._waiting)} within {LIMIT_S:.0f} s")

    def _best(self) -> Path | None:
        """The checkpoint of the best step that has one: what was the best stays until the
        checkpoint of the better one is whole."""
        names = map(checkpoint.name_of, self._coordinator.evaluations.ranked())
        paths = (self._checkpoints / name for name in names)
        return next((path for path in paths if path.is_dir()), None)

    async def _commit(self) -> None:
        assert self._directory is not None
        assert self._state is not None
        try:
            await asyncio.to_thread(checkpoint.commit, self._directory, self._state, self._about)
        except (checkpoint.CheckpointError, OSError) as error:
            self._end(str(error))
            return
        try:
            best = self._best()
            await asyncio.to_thread(checkpoint.prune, self._checkpoints, self._keep, best=best)
        except OSError as error:  # the new one is there all the same
            log.warning("older checkpoints than the newest %d stay: %s", self._keep, error)
        self._end("")

    def _end(self, error: str) -> None:
        assert self._directory is not None
        if error:
            checkpoint.abandon(self._directory)
        self._directory = self._state = None
        self._done(Checkpointed(step=self._step, error=error))
