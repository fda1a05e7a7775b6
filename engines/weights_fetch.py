"""Fetches weights that were published on another machine, once per machine, and verifies them.

Turns a manifest into a directory of this machine that holds its file. Engines of one
machine share the directory: the first one fetches.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import filelock
import msgspec
import xxhash

from engines.base import log_line
from engines.weights import FILE, WeightReceiver, WeightsError
from pipeline.system.private_dirs import make_private
from pipeline.wire.keys import PeerKeys, TransportError
from pipeline.wire.messages import Manifest
from pipeline.wire.weight_transfer import fetch_weights

PATIENCE_S = 60.0
"""Seconds without a piece after which the version counts as not received."""
KEPT = 2  # versions: an engine may still read the one before
_LOCK_S = 280.0  # a little less than an engine may take to load (`timeouts.load_s`)


class FetchingReceiver:
    """Fetches versions that this machine does not have yet.

    Args:
        peer_keys: how to reach the stage, on whose machine the file is.
        directory: used by this machine's engines only; made 0700. Raises PermissionError.
    """

    def __init__(self, peer_keys: PeerKeys, directory: Path) -> None:
        make_private(directory)
        self._peer_keys, self._directory = peer_keys, directory
        self._files = WeightReceiver()
        self.fetched_bytes = 0

    def receive(self, manifest: Manifest) -> Path:
        """Return the directory to load. Raises WeightsError if the file does not match."""
        final = self._directory / f"v{manifest.version}"
        try:
            with filelock.FileLock(self._directory / "lock", timeout=_LOCK_S):
                if not self._here(manifest, final):
                    self._fetch(manifest, final)
                    self._prune(final)
        except (OSError, TransportError, filelock.Timeout) as error:
            raise WeightsError(f"version {manifest.version}: {error}") from error
        return final

    def _here(self, manifest: Manifest, final: Path) -> bool:
        """Return True if an engine of this machine has fetched it already."""
        try:
            self._files.receive(msgspec.structs.replace(manifest, directory=str(final)))
        except WeightsError:
            return False
        return True

    def _fetch(self, manifest: Manifest, final: Path) -> None:
        shutil.rmtree(final, ignore_errors=True)  # from a learner before this one
        free = shutil.disk_usage(self._directory).free
        if free < manifest.bytes:
            raise WeightsError(
                f"version {manifest.version} has {manifest.bytes} bytes, {self._directory} {free}"
            )
        started, digest = time.monotonic(), xxhash.xxh3_128()
        draft = self._directory / f".v{manifest.version}-{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700, parents=True)
        try:
            with open(draft / FILE, "xb") as file:
                for piece in fetch_weights(
                    self._peer_keys, manifest.version, manifest.bytes, PATIENCE_S
                ):
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != manifest.checksum.lower():
                raise WeightsError(
                    f"version {manifest.version}: received xxh3_128 {digest.hexdigest()}, its "
                    f"manifest says {manifest.checksum}: damaged in transit; publish it again"
                )
            draft.rename(final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        took_s = time.monotonic() - started
        self.fetched_bytes += manifest.bytes
        size = f"{manifest.bytes / 1e6:.1f} MB"
        log_line(f"version {manifest.version}: fetched {size} in {took_s:.2f} s")

    def _prune(self, newest: Path) -> None:
        """Keep the newest two by time: a restarted learner counts from its checkpoint."""
        versions = sorted(self._directory.glob("v*"), key=lambda path: path.stat().st_mtime)
        for old in [path for path in versions if path != newest][: -(KEPT - 1)]:
            shutil.rmtree(old, ignore_errors=True)
