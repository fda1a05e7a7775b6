"""Checks published weights: a manifest in, a verified directory out.

Reads the published file once and compares it with its manifest. Knows no engine: this
verifies the file; `engines.weights_probe` verifies the load.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import psutil
import xxhash

from pipeline.config.pace import WeightsConfig, least_seconds
from pipeline.system.sleep import sleep_until
from pipeline.wire.messages import Manifest

FILE = "model.safetensors"
_READ_BYTES = 8 << 20
_HELD = ".held-"  # and the id of the process that loads


class WeightsError(Exception):
    """A version is refused: its file, or what an engine made of it, is not what was published."""


class Receiver(Protocol):
    """Turns a manifest into a directory to load. Raises WeightsError."""

    def receive(self, manifest: Manifest) -> Path: ...


class WeightReceiver:
    """Checks published weights before an engine sees them."""

    def receive(self, manifest: Manifest) -> Path:
        """Return the directory to load. Raises WeightsError if the file does not match."""
        path = Path(manifest.directory) / FILE
        try:
            found_bytes, found = self._read(path)
        except OSError as error:
            raise WeightsError(f"version {manifest.version}: {path}: {error.strerror}") from error
        if found_bytes != manifest.bytes or found != manifest.checksum.lower():
            raise WeightsError(
                f"version {manifest.version}: {path} has {found_bytes} bytes and xxh3_128 {found}, "
                f"its manifest says {manifest.bytes} and {manifest.checksum}: overwritten or cut "
                "off while it was read; publish the version again"
            )
        return path.parent

    @staticmethod
    def _read(path: Path) -> tuple[int, str]:
        digest, size = xxhash.xxh3_128(), 0
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                raise PermissionError(errno.EPERM, "another user's")
            while block := file.read(_READ_BYTES):
                digest.update(block)
                size += len(block)
        return size, digest.hexdigest()


@contextlib.contextmanager
def held_file(directory: Path) -> Generator[Path, None, None]:
    """Give an engine a directory whose file stays until it has been loaded and proved.

    The learner keeps two versions. One that has all its responses already (`max_staleness`) may
    publish several while an engine loads: the file gets a second link, which costs no memory, and
    is not removed with the first.

    Raises: WeightsError if it has been removed by now.
    """
    for left in directory.parent.glob(f"{_HELD}*"):  # of an engine that was killed
        pid = left.name.removeprefix(_HELD)
        if not (pid.isdecimal() and psutil.pid_exists(int(pid))):
            shutil.rmtree(left, ignore_errors=True)
    own = directory.parent / f"{_HELD}{os.getpid()}"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        os.link(directory / FILE, own / FILE)
    except FileNotFoundError as error:
        shutil.rmtree(own, ignore_errors=True)
        raise WeightsError(f"{directory / FILE} was removed while it was read") from error
    except OSError:  # a file system without links
        shutil.rmtree(own, ignore_errors=True)
        yield directory
        return
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


class PacedReceiver:
    """Takes as long for a version as an emulated link would."""

    def __init__(self, receiver: Receiver, section: WeightsConfig) -> None:
        self._receiver, self._section = receiver, section

    def receive(self, manifest: Manifest) -> Path:
        begun_s = time.monotonic()
        directory = self._receiver.receive(manifest)
        sleep_until(begun_s + least_seconds(self._section, manifest.bytes))
        return directory
