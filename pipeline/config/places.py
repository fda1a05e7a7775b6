"""Paths that somebody wrote down -> where they lead, or why nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path


def look_for(given: str, bases: Iterable[Path], fits: Callable[[Path], bool]) -> tuple[str, str]:
    """(absolute path without links, "") of the first that is there and fits, or ("", why none is).

    Args:
        fits: `Path.is_file` or `Path.is_dir`: a device or a pipe is neither, and has no end.
    """
    if not given:
        return "", "it is empty"
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:  # "~somebody", whom nobody knows
        return "", str(error)
    tried = dict.fromkeys(base / path for base in bases)
    for candidate in tried:
        try:
            if fits(candidate):
                return str(candidate.resolve()), ""
        except (OSError, ValueError):  # longer than any path, or with a NUL in it
            continue
    return "", f"looked for {' and '.join(map(str, tried))}"
