"""What a part of a run says of its start in its log, for the launcher, which shows it to people."""

from __future__ import annotations

import contextlib

MARK = "now: "
"""Begins a line of a log that says what its process does."""


def announce(what: str) -> None:
    """Say what this process is going to do for more than a moment."""
    with contextlib.suppress(OSError):  # a log that finds no room costs its lines, nothing else
        print(f"{MARK}{what}", flush=True)


def newest(text: str) -> str:
    """Return what was announced last in a log; '' if nothing was.

    >>> newest("now: importing torch\\na line\\nnow: loading the model\\n")
    'loading the model'
    """
    lines = [line for line in text.splitlines() if line.startswith(MARK)]
    return lines[-1].removeprefix(MARK) if lines else ""
