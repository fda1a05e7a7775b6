"""The versions of the weights that engines may load, and the directories that they may lie in.

Rank 0 of the learner publishes in memory; a version that finds no room there, because somebody
else has filled it, goes to the disk, and people are told so.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.wire.messages import Manifest


class PublishedWeights:
    """Args:
    weights: where versions are published.
    spare: where a version goes that finds no room there.
    tell: is given a line for people.
    """

    def __init__(self, weights: Path, spare: Path, tell: Callable[[str], None]) -> None:
        self._weights, self._spare, self._tell = weights, spare, tell
        self._manifests: dict[int, Manifest] = {}
        self._told = False

    @property
    def places(self) -> tuple[str, str]:
        return str(self._weights), str(self._spare)

    def remember(self, manifest: Manifest) -> None:
        """Note a version that engines are going to load; of older ones the newest is kept."""
        self._manifests = {v: m for v, m in self._manifests.items() if v >= manifest.version - 1}
        self._manifests[manifest.version] = manifest
        spared = Path(manifest.directory).parent == self._spare
        if spared and not self._told:
            self._told = True
            self._tell(
                f"version {manifest.version} of the weights found no room in "
                f"{self._weights.parent}, and lies in {self._spare} (see logs/l0.log): publishing "
                "takes longer until there is room again (told once)"
            )

    def of(self, version: int) -> Manifest | None:
        return self._manifests.get(version)

    def remove(self) -> None:
        """Remove every file; at the end."""
        for place in (self._weights, self._spare):
            shutil.rmtree(place, ignore_errors=True)
