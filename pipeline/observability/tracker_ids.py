"""Reads under which name a tracker knows a run, from the small file in the run's folder."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.observability.prometheus import TrackerError
from pipeline.system import untrusted_files

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MOST_BYTES = 256


def read_id(path: Path, tracker: str) -> str:
    """The name in a file. Raises TrackerError if it is damaged."""
    cure = "remove it to begin a new run there"
    try:
        found = untrusted_files.read_text(path, _MOST_BYTES).strip()
    except untrusted_files.UnreadableFile as error:
        raise TrackerError(f"metrics.{tracker}: {error}; {cure}") from error
    if not _ID.fullmatch(found):
        raise TrackerError(f"metrics.{tracker}: {path}: holds no name of a run; {cure}")
    return found
