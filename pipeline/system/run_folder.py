"""Paths in a run's folder, and the lock of the process that may write there.

One process at a time holds the folder's lock; a second run is refused, with the pid of
the first. The system frees the lock even after kill -9, and its file is never removed (a
new file would be a new lock). Who only looks takes no lock: it reads who holds it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from pathlib import Path

import filelock
import msgspec

from pipeline.system import untrusted_files
from pipeline.system.durable_files import SYSTEM, write_file
from pipeline.system.private_dirs import closed_above, group_number, make_private, open_to_group
from pipeline.system.temp_dirs import process_mark
from pipeline.system.terminal_text import encodable

_LOCKS = Path("/proc/locks")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


PRIVATE = ("checkpoints", "recordings", "parts", "join.key", "address")
"""What stays its owner's alone in a folder that a group may read, beside weights (`darts-...`):
keys, and what a resume or a replay reads."""


class RunError(Exception):
    """The folder cannot be used as asked; the message says why and what to do."""


class _Owner(msgspec.Struct, frozen=True):
    """Who holds the lock; written by the holder, removed before the lock is given back."""

    pid: int = 0
    since: str = ""
    host: str = ""
    mark: str = ""  # of the process, see `process_mark`


class RunFolder:
    """Paths of one run. `hold_lock()` takes the lock, `release_lock()` gives it back."""

    def __init__(self, path: Path) -> None:
        if not _NAME.fullmatch(path.name) or path.name in (".", ".."):
            raise RunError(f"{path}: a run's name has 1 to 64 letters, digits, '.', '_' or '-'")
        self.path = path.absolute()
        if encodable(str(self.path)) != str(self.path):
            raise RunError(f"{self.path}: is not UTF-8, as all text of a run; choose another --out")
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
        self.rollouts = self.path / "rollouts"
        self.logs = self.path / "logs"
        self.address = self.path / "address"  # directory of the sockets, for `--join`
        self.recordings = self.path / "recordings"  # with `debug.record`
        self._owner = self.path / "owner.json"
        self._lock_path = self.path / "lock"
        self._lock = filelock.FileLock(self._lock_path)

    def make_folders(self) -> None:
        """Make the folders, their owner's alone also where they are there already.

        Raises: OSError, PermissionError if one is another user's, or a link."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self.path, self.checkpoints, self.samples, self.rollouts, self.logs):
            make_private(directory)
        for directory in (
            self.path.parent,
            self.path,
        ):  # so that a checkpoint's path is durable, too
            SYSTEM.fsync(directory)

    def share_with(self, group: str) -> str:
        """Let a group of the system read what shows the run (setting `metrics.group`), but nobody
        else; '': nobody but its owner. To be called again for files that were made privately.

        Returns: a line for people if the group cannot get here, or ''. Raises: PermissionError if
        the folder is not this user's.
        """
        make_private(self.path)
        if not group:
            return ""
        weights = {path.name for path in self.path.glob("darts-*")}
        try:
            number = group_number(group)
            open_to_group(self.path, number, {*PRIVATE, *weights})
            above = closed_above(self.path, number)
        except OSError as error:  # a file system without groups, say: no reason to end a run
            return f"metrics.group: {self.path} cannot be opened to {group}: {error}"
        if above is None:
            return ""
        return (
            f"metrics.group: {group} cannot pass {above} on the way to {self.path}; "
            f"chgrp {group} and chmod g+x it, or choose another --out"
        )

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
        except (OSError, NotImplementedError) as error:
            raise RunError(self._no_locks(error)) from error
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = _Owner(os.getpid(), now, socket.gethostname(), process_mark(os.getpid()))
        try:
            write_file(self._owner, msgspec.json.encode(owner))
        except OSError:
            self._lock.release()
            raise

    def _no_locks(self, error: Exception) -> str:
        why = getattr(error, "strerror", None) or str(error)
        lacking = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
        if isinstance(error, NotImplementedError) or getattr(error, "errno", None) in lacking:
            return (
                f"{self._lock_path}: cannot be locked: {why}: this file system has no locks (NFS "
                "without its lock daemon, some FUSE), so that a second run could write into the "
                "same folder; choose --out on another file system, or have locks switched on"
            )
        return f"{self._lock_path}: cannot be locked: {why}; choose another --out"

    def release_lock(self) -> None:
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._owner.unlink(missing_ok=True)
        self._lock.release()

    @property
    def in_use(self) -> bool:
        """True if a process seems to hold the lock. Takes no lock, which would keep a run out, and
        writes nothing: it asks the system for its locks, and reads who was the last to take it."""
        if not self._lock_path.exists():
            return False
        if _is_locked(self._lock_path):
            return True
        owner = self._read_owner()
        if not owner.mark:
            return False
        if owner.host != socket.gethostname():
            return True  # on another machine: nothing here tells that it has ended
        return owner.mark == process_mark(owner.pid)

    def _read_owner(self) -> _Owner:
        try:
            return untrusted_files.read_json(self._owner, _Owner)
        except untrusted_files.UnreadableFile:
            return _Owner()

    def _who(self) -> str:
        owner = self._read_owner()
        if not owner.pid:
            return "another process"
        return f"process {owner.pid}, running since {owner.since}"

    def next_incarnation(self) -> int:
        """Count how often a stage has run here (1, 2, ...). Stored before any frame is sent."""
        path = self.path / "incarnation"
        try:
            last = int(untrusted_files.read_text(path, 32))
        except (untrusted_files.UnreadableFile, ValueError):
            last = 0
        temporary = path.with_suffix(".tmp")
        write_file(temporary, str(last + 1))
        SYSTEM.fsync(temporary)
        temporary.rename(path)
        return last + 1


def _is_locked(path: Path) -> bool:
    """Whether the system lists a lock on this file. A process of another container is not
    listed, nor is a lock on a file system whose files have other numbers there than here."""
    try:
        found = path.stat()
        listed = _LOCKS.read_text()
    except (OSError, ValueError):
        return False
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return any("->" not in line and file in line.split() for line in listed.splitlines())


def new_name(base: Path) -> Path:
    """Return `base` if no such path exists, else base-2, base-3, ..."""
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path
