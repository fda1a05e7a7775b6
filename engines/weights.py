"""Checks published weights: a manifest in, a verified directory out.

Reads the published file once and compares it with its manifest. Knows no engine: this
verifies the file; `engines.weights_probe` verifies the load.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Protocol

import xxhash

from pipeline.config.pace import WeightsConfig, least_seconds
from pipeline.system.sleep import sleep_until
from pipeline.wire.messages import Manifest

FILE = "model.safetensors"
_READ_BYTES = 8 << 20


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


class PacedReceiver:
    """Takes as long for a version as an emulated link would."""

    def __init__(self, receiver: Receiver, section: WeightsConfig) -> None:
        self._receiver, self._section = receiver, section

    def receive(self, manifest: Manifest) -> Path:
        begun_s = time.monotonic()
        directory = self._receiver.receive(manifest)
        sleep_until(begun_s + least_seconds(self._section, manifest.bytes))
        return directory
