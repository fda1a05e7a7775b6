"""Words of an engine's process, into its log: a disk that is full costs them, not the engine."""

from __future__ import annotations

import contextlib
import sys


def say(line: str) -> None:
    """One line on stderr, at once."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
