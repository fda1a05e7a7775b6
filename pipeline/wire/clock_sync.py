"""Translates another process's monotonic clock into ours.

Under one boot of one kernel both have the same clock: exact. Elsewhere heartbeats
measure the difference, as in NTP: the one with the shortest round trip counts, and is
right to half of that trip.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_BEATS = 64  # heartbeats that are compared: clocks drift apart slowly


def boot_id() -> str:
    """Return the id of this boot of this machine's kernel; '' if it is unknown."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


class PeerClock:
    """The clock of one peer.

    Args:
        theirs, now: their clock when they joined, and ours when that arrived.
        same: both are one clock.
    """

    def __init__(self, theirs: float, now: float, *, same: bool) -> None:
        self.same = same
        self._joined = 0.0 if same else now - theirs
        self._beats: deque[tuple[float, float]] = deque(maxlen=_BEATS)  # (round trip, offset)

    def add_heartbeat(self, now: float, theirs: float, echo: float, held: float) -> None:
        """Add a heartbeat that arrived at `now`.

        Args:
            theirs: their clock when it was sent.
            echo: our clock in the newest message of ours that they had received by then.
            held: seconds since they received that.
        """
        trip = now - echo - held
        if not self.same and trip >= 0:
            self._beats.append((trip, now - trip / 2 - theirs))

    @property
    def offset_s(self) -> float:
        """Seconds to add to their time to get ours."""
        return min(self._beats)[1] if self._beats else self._joined

    @property
    def error_s(self) -> float:
        """Seconds by which `offset_s` may be wrong; infinite before the first heartbeat."""
        if self.same:
            return 0.0
        return min(self._beats)[0] / 2 if self._beats else math.inf
