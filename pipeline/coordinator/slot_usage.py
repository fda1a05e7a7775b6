"""Slots in use over time: how long a step generated, and how much of the engines lay idle.

Turns placements and ends of legs into slot-seconds. Pure: time is an argument, and
a change costs the same however many engines there are.
"""

from __future__ import annotations


class SlotUsage:
    """Slots in use over time, from the first placement of a step to its last end of a leg."""

    def __init__(self) -> None:
        self.busy = 0  # slots that hold a leg
        self.slots = 0  # of all engines that have joined, serving or not
        self._most = 0  # slots in use at once in the step, at most
        self._first: float | None = None  # of the step; None: nothing placed yet
        self._at = 0.0  # the areas are known up to here
        self._busy_s = self._slot_s = 0.0  # slot-seconds since `_first`
        self._span = (0.0, 0.0, 0.0)  # seconds, `_busy_s`, `_slot_s` at the last end of a leg

    def open(self, now: float) -> None:
        """A step begins."""
        self._first = now if self.busy else None
        self._most = self.busy
        self._at, self._busy_s, self._slot_s = now, 0.0, 0.0
        self._span = (0.0, 0.0, 0.0)

    def change(self, now: float, busy: int = 0, slots: int = 0) -> None:
        """Legs have been placed or have ended, engines have come or gone."""
        self._advance(now)
        self.busy += busy
        self.slots += slots
        self._most = max(self._most, self.busy)
        if self._first is None and busy > 0:
            self._first = now
        elif self._first is not None and busy < 0:
            self._span = (now - self._first, self._busy_s, self._slot_s)

    def metrics(self, now: float) -> dict[str, float]:
        """Return what the step's generation came to so far.

        `generation_s`: from the first placement to the last end of a leg. `slots_used`: most
        slots in use at once; requests are placed whenever a slot is free, so no more could have
        been filled. `bubble_engine`: idle slot-seconds over slot-seconds that could have been
        filled, within `generation_s`; slots beyond `slots_used` are no bubble.
        """
        self._advance(now)
        if self._first is not None and self.busy:
            self._span = (now - self._first, self._busy_s, self._slot_s)
        seconds, busy_s, slot_s = self._span
        found: dict[str, float] = {"generation_s": seconds}
        fillable_s = min(slot_s, self._most * seconds)
        if fillable_s > 0:
            found |= {"slots_used": self._most, "bubble_engine": 1.0 - busy_s / fillable_s}
        return found

    def _advance(self, now: float) -> None:
        if self._first is not None:
            self._busy_s += self.busy * (now - self._at)
            self._slot_s += self.slots * (now - self._at)
        self._at = now
