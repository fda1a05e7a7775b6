"""Chooses the CPU cores of an engine without a GPU; the learner takes the others. Pure."""

from __future__ import annotations

from collections.abc import Collection


class CoresError(Exception):
    """`engine.cpu_cores` names cores that do not exist; the text lists those that do."""


def engine_cores(setting: str, usable: Collection[int]) -> list[int]:
    """Return the engine's cores, ascending.

    Args:
        setting: `engine.cpu_cores`: "auto" (the first core), or numbers and ranges.
        usable: cores that this process may run on.

    Raises: CoresError if no core is named, or one that may not be used.

    >>> engine_cores("0-2,5", range(8))
    [0, 1, 2, 5]
    >>> engine_cores("auto", {2, 3})
    [2]
    """
    if setting == "auto":
        return [min(usable)]
    named: set[int] = set()
    for part in setting.split(","):
        first, _, last = part.partition("-")
        named.update(range(int(first), int(last or first) + 1))
    if not named or named - set(usable):
        raise CoresError(
            f"engine.cpu_cores is {setting!r}, but the cores here are "
            f"{', '.join(map(str, sorted(usable)))}"
        )
    return sorted(named)
