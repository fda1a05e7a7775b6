"""Says what the parts of a run do that take their time to start: importing, compiling, loading.

What each part says of itself, once a second -> lines for people. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

FIRST_S = 5.0
"""How long a part does one thing before it is told of."""


class StartingParts:
    """Args:
    every_s: it is told again after so long.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._since: dict[str, tuple[str, float]] = {}  # part -> what it does, since when
        self._told: dict[str, float] = {}  # what is done -> when it was told

    def look(self, now: float, doing: Mapping[str, str]) -> list[str]:
        """Args:
        doing: what each part that has not joined yet does now, in its own words.
        """
        before = self._since
        self._since = {
            name: before[name] if before.get(name, ("", 0.0))[0] == what else (what, now)
            for name, what in doing.items()
            if what
        }
        found: dict[str, list[str]] = {}
        for name, (what, since) in self._since.items():
            if now - since >= FIRST_S:
                found.setdefault(what, []).append(name)
        lines: list[str] = []
        for what, names in found.items():
            if now - self._told.get(what, -self._every_s) >= self._every_s:
                self._told[what] = now
                seconds = max(now - self._since[name][1] for name in names)
                lines.append(f"{', '.join(names)}: {what} ({seconds:.0f} s so far)")
        return lines
