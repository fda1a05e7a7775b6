"""Names engines that a run should have and has not, again and again, also while others carry on.

The engines that are here, once a second -> lines for people. Whoever was lost and hangs while it
starts again, or never came at all, is told of once it has been missing for a warn interval, and
once an interval from then on. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


class MissingEngines:
    """Args:
    count: engines of the run, `e0`, `e1`, ... (others may stand in for them).
    every_s: the warn interval.
    """

    def __init__(self, count: int, every_s: float) -> None:
        self._count, self._every_s = count, every_s
        self._since: dict[str, float] = {}
        self._why: dict[str, str] = {}
        self._told = 0.0

    def lost(self, name: str, why: str) -> None:
        """Note why an engine was lost, for the line about it."""
        self._why[name] = why

    def look(self, now: float, here: Collection[str], *, works: bool) -> list[str]:
        """Args:
        here: names of the engines that are connected.
        works: the run evaluates or trains; before, its start tells of who is missing.
        """
        expected = [f"e{number}" for number in range(self._count)]
        lacking = max(0, self._count - len(here))
        absent = [name for name in expected if name not in here] if lacking else []
        self._since = {name: self._since.get(name, now) for name in absent}
        self._why = {name: why for name, why in self._why.items() if name in self._since}
        late = {n: now - t for n, t in self._since.items() if now - t >= self._every_s}
        if not (works and late) or now - self._told < self._every_s:
            return []
        self._told = now
        others = f"{len(here)} of {self._count} engines carry on" if here else "no engine is here"
        return [
            f"{name} is missing for {seconds:.0f} s"
            + (f" (lost: {why})" if (why := self._why.get(name)) else " (it has not joined)")
            + f"; {others}"
            for name, seconds in late.items()
        ]

    @property
    def since(self) -> Mapping[str, float]:
        """Name -> when it was first missed."""
        return self._since
