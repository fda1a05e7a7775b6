"""Chooses the folder of compiled extensions, and removes locks that a killed compile left.

torch takes a lock by creating the file `lock` in an extension's folder, keeps it open, and
deletes it at the end; a process killed in between leaves it, and every later
`deepspeed.init_distributed` then waits for it silently. Invariant: a lock that a live
process holds open is never removed. Imports neither torch nor DeepSpeed.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.system.cache_dir import cache_directory
from pipeline.system.private_dirs import make_private
from pipeline.system.progress import announce

_LOOK_S = 1.0
"""Between two looks for what others leave while this process waits."""
_RELEASE_S = 0.2
"""torch closes its lock a moment before it removes it: for so long it is left to torch."""


def torch_extensions_dir() -> Path:
    """Return the folder of compiled extensions: TORCH_EXTENSIONS_DIR, else in the environment.

    torch's own default is shared by all of a user's environments (~/.cache); in the
    environment, extension and torch come and go together. An environment that others have
    installed may be closed to this user: then one of its name in ~/.cache, or in the temporary
    directory where there is no home.
    """
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    if chosen:
        return Path(chosen)
    mark = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    places = [Path(sys.prefix) / "torch_extensions"]
    if (cache := cache_directory()) is not None:
        places.append(cache / "darts" / "torch_extensions" / mark)
    temporary = Path(tempfile.gettempdir()) / f"darts-{os.getuid()}-torch-extensions-{mark}"
    return next((place for place in places if _can_be_written(place)), temporary)


def _can_be_written(directory: Path) -> bool:
    there = next(place for place in (directory, *directory.parents) if place.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def use_torch_extensions_dir() -> Path:
    """Make torch use `torch_extensions_dir()`, here and in child processes.

    Call before anything compiles or loads an extension, so before DeepSpeed starts. torch asks
    for `ninja` on PATH at every load, even of a compiled extension, and another release of
    ninja compiles everything again: so the environment's own bin folder comes first.
    """
    directory = torch_extensions_dir()
    if directory.parent == Path(tempfile.gettempdir()):
        make_private(directory)  # what lies there is run: nobody else may have put it there
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(directory)
    programs = str(Path(sys.prefix) / "bin")
    path = os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != programs:
        os.environ["PATH"] = programs + os.pathsep + path
    return directory


def clear_stale_lock(directory: Path | None = None) -> list[Path]:
    """Remove the build locks that no live process holds.

    Args:
        directory: folder to search, `torch_extensions_dir()` if None.

    Returns: the locks removed, sorted; empty when there was nothing to do.
    Locks of other users, and all locks where there is no /proc, are left alone.
    """
    root = torch_extensions_dir() if directory is None else directory
    locks = _locks(root)
    if not locks or not Path("/proc/self/fd").is_dir():
        return []
    seen = {lock: _identity(lock) for lock in locks}
    held = _open_files()
    stale = {lock: file for lock, file in seen.items()
             if file is not None and file[0] == os.getuid() and file[1:3] not in held}  # fmt: skip
    if stale:
        time.sleep(_RELEASE_S)
    removed: list[Path] = []
    for lock, file in stale.items():
        if _identity(lock) == file:  # else released, or taken anew
            with contextlib.suppress(FileNotFoundError):  # cleared by another rank
                lock.unlink()
                removed.append(lock)
    return removed


def _locks(root: Path) -> list[Path]:
    """NAME/lock where TORCH_EXTENSIONS_DIR was set, py311_cpu/NAME/lock where it was not."""
    return sorted({*root.glob("*/lock"), *root.glob("*/*/lock")})


@contextlib.contextmanager
def no_stale_locks(directory: Path | None = None) -> Iterator[None]:
    """Clear stale locks now and again while inside, so that no compile waits for a dead process,
    and say what is being compiled."""
    clear_stale_lock(directory)
    over = threading.Event()

    def look() -> None:
        told: set[Path] = set()
        while not over.wait(_LOOK_S):
            clear_stale_lock(directory)
            for lock in _locks(directory or torch_extensions_dir()):
                if lock not in told:
                    told.add(lock)
                    announce(f"{lock.parent.name} of DeepSpeed is being compiled in {lock.parent}")

    looking = threading.Thread(target=look, daemon=True, name="stale locks")
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()


def _identity(lock: Path) -> tuple[int, int, int, int] | None:
    """Return owner, device, inode and time of a file, or None. (Inodes are used again.)"""
    try:
        status = lock.stat()
    except FileNotFoundError:
        return None
    return status.st_uid, status.st_dev, status.st_ino, status.st_ctime_ns


def _open_files() -> set[tuple[int, int]]:
    """Return (device, inode) of every file that a process of this user holds open."""
    found: set[tuple[int, int]] = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for descriptor in os.scandir(process / "fd"):
                try:
                    status = descriptor.stat()
                except OSError:  # closed since it was listed
                    continue
                found.add((status.st_dev, status.st_ino))
        except OSError:  # ended since it was listed, or another user's
            continue
    return found
