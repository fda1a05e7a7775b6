"""Paths in a run's folder, and the lock of the process that may write there.

One process at a time holds the folder's lock; a second run is refused, with the pid of
the first. The system frees the lock even after kill -9, and its file is never removed (a
new file would be a new lock).
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import filelock

from pipeline.system.durable_files import SYSTEM

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RunError(Exception):
    """The folder cannot be used as asked; the message says why and what to do."""


class RunFolder:
    """Paths of one run. `hold_lock()` takes the lock, `release_lock()` gives it back."""

    def __init__(self, path: Path) -> None:
        if not _NAME.fullmatch(path.name) or path.name in (".", ".."):
            raise RunError(f"{path}: a run's name has 1 to 64 letters, digits, '.', '_' or '-'")
        self.path = path.absolute()
        self.config = self.path / "config.yaml"
        self.about = self.path / "about.json"
        self.metrics = self.path / "metrics.jsonl"
        self.trace = self.path / "trace.json"
        self.live = self.path / "live.json"
        self.wandb_id = self.path / "wandb-id"
        self.mlflow_id = self.path / "mlflow-id"
        self.decisions = self.path / "decisions.jsonl"
        self.result = self.path / "result.json"
        self.micro_batches = self.path / "micro-batches.json"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.samples = self.path / "samples"
        self.logs = self.path / "logs"
        self.address = self.path / "address"  # directory of the sockets, for `--join`
        self.recordings = self.path / "recordings"  # with `debug.record`
        self._owner = self.path / "owner.json"
        self._lock_path = self.path / "lock"
        self._lock = filelock.FileLock(self._lock_path)

    def make_folders(self) -> None:
        for directory in (self.path, self.checkpoints, self.samples, self.logs):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (
            self.path.parent,
            self.path,
        ):  # so that a checkpoint's path is durable, too
            SYSTEM.fsync(directory)

    def recording(self, incarnation: int) -> Path:
        """File of what the coordinator of one stage heard and answered."""
        return self.recordings / f"stage-{incarnation:04}.darts"

    def hold_lock(self) -> None:
        """Take the lock. Raises RunError that names the process that has it."""
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunError(
                f"{self.path}: in use by {self._who()}; stop it or choose --out"
            ) from None
        owner = {"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._owner.write_text(json.dumps(owner))

    def release_lock(self) -> None:
        self._lock.release()

    @property
    def in_use(self) -> bool:
        """True if a process holds the lock. Takes it for a moment if none does: use it when a run
        seems to have ended, not all the time."""
        if not self._lock_path.exists():
            return False
        probe = filelock.FileLock(self._lock_path)
        try:
            probe.acquire(timeout=0)
        except filelock.Timeout:
            return True
        probe.release()
        return False

    def _who(self) -> str:
        try:
            owner = json.loads(self._owner.read_text())
            return f"process {owner['pid']}, running since {owner['since']}"
        except (OSError, ValueError, KeyError):
            return "another process"

    def next_incarnation(self) -> int:
        """Count how often a stage has run here (1, 2, ...). Stored before any frame is sent."""
        path = self.path / "incarnation"
        try:
            last = int(path.read_text())
        except (OSError, ValueError):
            last = 0
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w") as file:
            file.write(str(last + 1))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        return last + 1


def new_name(base: Path) -> Path:
    """Return `base` if no such path exists, else base-2, base-3, ..."""
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path
