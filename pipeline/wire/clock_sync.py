"""Another process's monotonic clock in ours.

Where both processes run under one boot of one kernel it is the same clock: exact.
Elsewhere the difference is measured by heartbeats, as NTP does it: the one with the
shortest round trip counts, and is right to half of that trip.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_BEATS = 64  # over which the shortest round trip is looked for: clocks drift apart slowly


def boot_id() -> str:
    """Names this boot of this machine's kernel; '' where that cannot be told."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


class PeerClock:
    """Args:
    theirs, now: their clock when they joined, and ours when that was heard.
    same: it is one clock.
    """

    def __init__(self, theirs: float, now: float, *, same: bool) -> None:
        self.same = same
        self._joined = 0.0 if same else now - theirs
        self._beats: deque[tuple[float, float]] = deque(maxlen=_BEATS)  # (round trip, offset)

    def add_heartbeat(self, now: float, theirs: float, echo: float, held: float) -> None:
        """A heartbeat that was heard at `now`.

        Args:
            theirs: their clock when it was sent.
            echo: our clock in the newest word of ours that they had heard by then.
            held: seconds they had held that.
        """
        trip = now - echo - held
        if not self.same and trip >= 0:
            self._beats.append((trip, now - trip / 2 - theirs))

    @property
    def offset_s(self) -> float:
        """Seconds to add to their time to have ours."""
        return min(self._beats)[1] if self._beats else self._joined

    @property
    def error_s(self) -> float:
        """Seconds by which `offset` may be wrong; infinite before the first heartbeat."""
        if self.same:
            return 0.0
        return min(self._beats)[0] / 2 if self._beats else math.inf
