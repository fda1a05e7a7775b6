"""Writes and reads checkpoints on disk: a checkpoint is complete or does not exist.

Everything is written into a temporary directory, every file fsynced, the
manifest with sizes and checksums last; then one rename commits. Reading tries the
newest first, checks every file, and falls back to an older one with a warning.
DeepSpeed's own `latest` is not used.

At every moment, whatever the disk has not written yet: the newest `step-...`
is the old state or the new one, and each `step-...` is complete. Directories that
are being made or removed have other names (`.tmp-`, `.old-`, `.trash-`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from pipeline.coordinator.snapshot import Snapshot
from pipeline.system import untrusted_files
from pipeline.system.durable_files import OTHERS_WRITE, SYSTEM, Disk, remove_tree, write_durably

STATE = "coordinator.msgpack"
MANIFEST = "MANIFEST.json"
FORMAT = 3
_NAME = re.compile(r"step-(\d{6,})")
_ASIDE, _TRASH, _TEMPORARY = ".old-", ".trash-", ".tmp-"
_CORRUPT = "corrupt-"


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message names the file."""


class Refused(CheckpointError):
    """A checkpoint that may be complete, but not for this user or run: it stays where it is."""


def file_checksum(path: Path) -> str:
    """Return the xxh3_128 of a file."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def name_of(step: int) -> str:
    return f"step-{step:06d}"


def committed(checkpoints: Path) -> list[Path]:
    """List the directories that are named as checkpoints, the newest first."""
    found = [p for p in checkpoints.glob("step-*") if _NAME.fullmatch(p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)


# --- writing ------------------------------------------------------------------------------------


def begin_draft(checkpoints: Path, step: int, disk: Disk = SYSTEM) -> Path:
    """Make an empty temporary directory for the ranks to write into; removes older ones.

    Its name is new each time: a rank that is late with an abandoned checkpoint
    writes nothing into the next one.
    """
    if not checkpoints.is_dir():
        disk.mkdir(checkpoints)
        disk.fsync(checkpoints.parent)
    sweep_leftovers(checkpoints, disk)
    directory = checkpoints / f"{_TEMPORARY}{name_of(step)}-{secrets.token_hex(4)}"
    disk.mkdir(directory)
    return directory


def commit(directory: Path, snapshot: Snapshot, about: dict[str, Any], disk: Disk = SYSTEM) -> Path:
    """Add the coordinator's state and the manifest to the ranks' files, then rename.

    The ranks have fsynced their files; the directories are synced here. A checkpoint
    of the same step (Ctrl-C within the step after it) is replaced: renamed first, and
    brought back by `sweep_leftovers` if this process ends between the renames.
    Raises CheckpointError, and removes the temporary directory.
    """
    target = directory.parent / name_of(snapshot.step)
    aside = target.with_name(f"{_ASIDE}{target.name}")
    try:
        write_durably(disk, directory / STATE, msgspec.msgpack.encode(snapshot))
        files = sorted(p for p in directory.rglob("*") if p.is_file())
        manifest = {
            "format": FORMAT,
            "step": snapshot.step,
            "version": snapshot.version,
            "files": {
                str(p.relative_to(directory)): [p.stat().st_size, file_checksum(p)] for p in files
            },
            **about,
        }
        manifest["checksum"] = _seal(manifest)
        write_durably(disk, directory / MANIFEST, json.dumps(manifest, indent=1).encode())
        for folder in sorted((p for p in directory.rglob("*") if p.is_dir()), reverse=True):
            disk.fsync(folder)
        disk.fsync(directory)
        if target.exists():
            disk.rename(target, aside)
        disk.rename(directory, target)  # the commit
    except (OSError, TypeError, ValueError, msgspec.MsgspecError) as error:
        abandon(directory, disk)
        _bring_back(directory.parent, disk)
        raise _failed(directory, error) from error
    try:
        disk.fsync(target.parent)
    except OSError as error:  # the disk may have either name: both stay
        raise _failed(target, error) from error
    abandon(aside, disk)
    return target


def _failed(where: Path, error: Exception) -> CheckpointError:
    where = getattr(error, "filename", None) or where
    return CheckpointError(f"{where}: {getattr(error, 'strerror', None) or error}")


def _seal(manifest: dict[str, Any]) -> str:
    """Compute the checksum of the manifest, without its own field."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


def prune(checkpoints: Path, keep: int, disk: Disk = SYSTEM, best: Path | None = None) -> None:
    """Remove all but the newest `keep` (at least 2) and the best one."""
    for victim in committed(checkpoints)[max(2, keep) :]:
        if victim == best:
            continue
        disk.rename(victim, victim.with_name(f"{_TRASH}{victim.name}-{secrets.token_hex(4)}"))
    sweep_leftovers(checkpoints, disk)


def sweep_leftovers(checkpoints: Path, disk: Disk = SYSTEM) -> None:
    """Remove unfinished and old directories. Hold the run's lock; call between checkpoints."""
    _bring_back(checkpoints, disk)
    left = [p for name in (_TEMPORARY, _TRASH, _ASIDE) for p in checkpoints.glob(f"{name}*")]
    if left:
        disk.fsync(checkpoints)  # else the removal may be on disk without the rename before it
    for path in left:
        abandon(path, disk)


def _bring_back(checkpoints: Path, disk: Disk) -> None:
    """Restore a checkpoint whose replacement was never completed."""
    for aside in checkpoints.glob(f"{_ASIDE}step-*"):
        target = aside.with_name(aside.name.removeprefix(_ASIDE))
        if not target.exists():
            disk.rename(aside, target)


def abandon(directory: Path, disk: Disk = SYSTEM) -> None:
    """Remove a directory that is not, or no longer, a checkpoint."""
    with contextlib.suppress(OSError):  # harmless: the next checkpoint removes it
        remove_tree(disk, directory)


# --- reading ------------------------------------------------------------------------------------


def verify(directory: Path) -> dict[str, Any]:
    """Check every file against the manifest, and return it. Raises CheckpointError."""
    if directory.is_symlink():
        raise CheckpointError(f"{directory}: is a symbolic link, not what was written")
    manifest = _read_manifest(directory / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise Refused(
            f"{directory}: format {manifest.get('format')}, this darts reads {FORMAT}; continue "
            "with the version that wrote it, or start a new run with its model/"
        )
    try:
        _check_files(directory, manifest["files"])
    except OSError as error:
        raise _failed(directory, error) from error
    except (ValueError, TypeError, AttributeError) as error:  # an invalid file name or entry
        raise CheckpointError(f"{directory / MANIFEST}: {error!r}") from error
    return manifest


class _Manifest(msgspec.Struct, frozen=True):
    """What a resume uses of a manifest; other entries are told to people."""

    files: dict[str, tuple[int, str]]
    step: int
    made_for: dict[str, str] = {}
    records: dict[str, int] = {}
    training_seconds: float = 0.0


def _read_manifest(path: Path) -> dict[str, Any]:
    """Raises CheckpointError if it is damaged, or not of the manifest's form."""
    try:
        manifest = json.loads(untrusted_files.read_text(path))
        untrusted_files.check_depth(manifest, path)
        if manifest["checksum"] != _seal(manifest):
            raise CheckpointError(f"{path}: not what was written")
        if manifest.get("format") == FORMAT:
            msgspec.convert(manifest, _Manifest, str_keys=True)
    except untrusted_files.UnreadableFile as error:
        raise CheckpointError(str(error)) from error
    except (*untrusted_files.BROKEN, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error!r:.500}") from error
    return manifest


def _check_files(directory: Path, files: dict[str, tuple[int, str]]) -> None:
    for path in _everything(directory):
        if path.is_symlink():
            raise CheckpointError(f"{path}: is a symbolic link, not what was written")
        if str(path.relative_to(directory)) not in {MANIFEST, *files}:
            raise CheckpointError(f"{path}: the manifest does not list this file")
    for name, (size, digest) in files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise CheckpointError(f"{directory}: {name} is outside the checkpoint")
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != size or file_checksum(path) != digest:
            raise CheckpointError(f"{path}: not what was written")


def _everything(directory: Path) -> Iterator[Path]:
    """Yield all files below; links are included and not followed."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _everything(path)
        else:
            yield path


def check_owner(directory: Path) -> None:
    """Raise Refused if others could have written it: torch files and plug-in state are trusted."""
    me, checkpoints = os.geteuid(), directory.parent
    for path in (checkpoints, directory, *sorted(directory.rglob("*"))):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            continue  # `verify` names it
        if found.st_uid != me:
            raise Refused(
                f"{path}: belongs to user {found.st_uid}, this is user {me}; only its owner may "
                f"use a checkpoint. If you trust it: chown -R {me} {shlex.quote(str(checkpoints))}"
            )
        if found.st_mode & OTHERS_WRITE:
            raise Refused(
                f"{path}: other users can write it (mode {stat.S_IMODE(found.st_mode):04o}). "
                f"If you trust it: chmod -R go-w {shlex.quote(str(checkpoints))}"
            )


def newest(checkpoints: Path, disk: Disk = SYSTEM) -> tuple[Path, dict[str, Any], list[str]]:
    """Find the newest complete checkpoint; returns it, its manifest, complaints about newer ones.

    Hold the run's lock: removes what a crash has left, and renames damaged
    checkpoints. Raises CheckpointError if there is none (a run never restarts
    silently), Refused if the newest complete one must not be used.
    """
    sweep_leftovers(checkpoints, disk)
    complaints: list[str] = []
    for directory in committed(checkpoints):
        check_owner(directory)
        try:
            return directory, verify(directory), complaints
        except Refused:
            raise
        except CheckpointError as error:
            complaints.append(str(error))
            with contextlib.suppress(OSError):  # a read-only copy, say: the complaint names it
                disk.rename(directory, _free(directory.with_name(f"{_CORRUPT}{directory.name}")))
    raise _none(checkpoints, complaints)


def peek_newest(checkpoints: Path) -> Path:
    """Find the newest complete checkpoint of a run that may be active; changes nothing.

    Raises CheckpointError if there is none.
    """
    complaints: list[str] = []
    for directory in (*committed(checkpoints), *checkpoints.glob(f"{_ASIDE}step-*")):
        try:
            verify(directory)
        except CheckpointError as error:
            complaints.append(str(error))
        else:
            return directory
    raise _none(checkpoints, complaints)


def _none(checkpoints: Path, complaints: list[str]) -> CheckpointError:
    aside = sorted(p.name for p in checkpoints.glob(f"{_CORRUPT}*"))
    lines = [f"{checkpoints}: no complete checkpoint", *complaints]
    lines += [f"set aside: {', '.join(aside)}"] if aside else []
    return CheckpointError("\n".join([*lines, "without one, start the run anew"]))


def _free(path: Path) -> Path:
    """Return this path, or the next one that does not exist."""
    number = 1
    while (found := path if number == 1 else path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return found


def load_state(directory: Path) -> Snapshot:
    """Read the coordinator's state. Raises CheckpointError."""
    path = directory / STATE
    try:
        return untrusted_files.decode_msgpack(path.read_bytes(), path, Snapshot)
    except OSError as error:
        raise _failed(path, error) from error
    except untrusted_files.UnreadableFile as error:
        raise CheckpointError(str(error)) from error
