"""One cut, one rename: a checkpoint is whole or not there.

Everything is written into a temporary directory, every file fsynced, the
manifest with sizes and checksums last; then one rename commits. Reading scans
newest first, checks every file, and falls back loudly. DeepSpeed's own
`latest` is not used.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from pipeline.snapshot import Snapshot

STATE = "coordinator.msgpack"
MANIFEST = "MANIFEST.json"
FORMAT = 1
_ASIDE = ".old-"


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message names the file."""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def checksum(path: Path) -> str:
    """xxh3_128 of a file."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def name_of(step: int) -> str:
    return f"step-{step:06d}"


def begin(checkpoints: Path, step: int) -> Path:
    """An empty temporary directory for the ranks to write into; older ones are swept."""
    checkpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
    _recover(checkpoints)
    for left in [*checkpoints.glob(".tmp-*"), *checkpoints.glob(".trash-*")]:
        shutil.rmtree(left, ignore_errors=True)
    directory = checkpoints / f".tmp-{name_of(step)}-{os.getpid()}"
    directory.mkdir(mode=0o700)
    return directory


def commit(directory: Path, snapshot: Snapshot, about: dict[str, Any]) -> Path:
    """Add the coordinator's state and the manifest to what the ranks wrote, then rename.

    A checkpoint of the same step (Ctrl-C within the step after it) is replaced:
    set aside first, and brought back by `_recover` if we end between the renames.
    Raises CheckpointError; the temporary directory is gone then.
    """
    target = directory.parent / name_of(snapshot.step)
    aside = target.with_name(f"{_ASIDE}{target.name}")
    try:
        _write(directory / STATE, msgspec.msgpack.encode(snapshot))
        files = sorted(p for p in directory.rglob("*") if p.is_file())
        manifest = {
            "format": FORMAT,
            "step": snapshot.step,
            "version": snapshot.version,
            "files": {
                str(p.relative_to(directory)): [p.stat().st_size, checksum(p)] for p in files
            },
            **about,
        }
        manifest["checksum"] = _seal(manifest)
        _write(directory / MANIFEST, json.dumps(manifest, indent=1).encode())
        for folder in sorted((p for p in directory.rglob("*") if p.is_dir()), reverse=True):
            _sync(folder)
        _sync(directory)
        if target.exists():
            target.rename(aside)
        directory.rename(target)  # the commit
        _sync(target.parent)
    except (OSError, TypeError, ValueError, msgspec.MsgspecError) as error:
        abandon(directory)
        _recover(directory.parent)
        where = getattr(error, "filename", None) or directory
        raise CheckpointError(f"{where}: {getattr(error, 'strerror', None) or error}") from error
    abandon(aside)
    return target


def _seal(manifest: dict[str, Any]) -> str:
    """Checksum of the manifest itself, without its field for it."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _recover(checkpoints: Path) -> None:
    """Bring back what was set aside for one that never came; sweep it if it came."""
    for aside in checkpoints.glob(f"{_ASIDE}step-*"):
        target = aside.with_name(aside.name.removeprefix(_ASIDE))
        if target.exists():
            abandon(aside)
        else:
            aside.rename(target)


def abandon(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def prune(checkpoints: Path, keep: int) -> None:
    """Leave the newest `keep` (at least 2)."""
    for victim in sorted(checkpoints.glob("step-*"))[: -max(2, keep)]:
        trash = victim.with_name(f".trash-{victim.name}-{os.getpid()}")
        with contextlib.suppress(OSError):  # it is only in the way: the next one sweeps it
            victim.rename(trash)
        abandon(trash)


def verify(directory: Path) -> dict[str, Any]:
    """The manifest, after every file was held against it. Raises CheckpointError."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        files = manifest["files"]
        sealed = manifest["checksum"] == _seal(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{directory / MANIFEST}: {error!r}") from error
    if not sealed:
        raise CheckpointError(f"{directory / MANIFEST}: not what was written")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{directory}: format {manifest.get('format')}, expected {FORMAT}")
    try:
        for name, (size, digest) in files.items():
            path = directory / name
            if not path.resolve().is_relative_to(directory.resolve()) or path.is_symlink():
                raise CheckpointError(f"{directory}: {name} is outside of it")
            if not path.is_file() or path.stat().st_size != size or checksum(path) != digest:
                raise CheckpointError(f"{path}: missing, or not what was written")
    except (OSError, ValueError, TypeError, AttributeError) as error:  # no name, or no entry
        raise CheckpointError(f"{directory / MANIFEST}: {error!r}") from error
    return manifest


def newest(checkpoints: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest whole checkpoint, its manifest, and complaints about newer ones.

    Raises CheckpointError if there is none: a run is never silently begun anew.
    """
    _recover(checkpoints)
    complaints: list[str] = []
    for directory in sorted(checkpoints.glob("step-*"), reverse=True):
        try:
            return directory, verify(directory), complaints
        except CheckpointError as error:
            complaints.append(str(error))
            with contextlib.suppress(OSError):  # of a read-only copy, say: it is named all the same
                directory.rename(_free(directory.with_name(f"corrupt-{directory.name}")))
    raise CheckpointError("\n".join([f"{checkpoints}: no whole checkpoint", *complaints]))


def _free(path: Path) -> Path:
    """This name, or the next one that is free."""
    number = 1
    while (found := path if number == 1 else path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return found


def load_state(directory: Path) -> Snapshot:
    """The coordinator's state. Raises CheckpointError."""
    try:
        return msgspec.msgpack.decode((directory / STATE).read_bytes(), type=Snapshot)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{directory / STATE}: {error}") from error
