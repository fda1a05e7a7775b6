"""Models the seconds that an engine takes for a token, by the sequences that run at once.

A profile measured at the engine's start, kept true by what its frames show
while it serves. PTL(b) of arXiv 2605.30859: seconds per token of one sequence
while b run; a straight line between measured points. Pure; no clock.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence

FLAT = ((1, 0.01), (2, 0.01))
"""For an engine that measured nothing: as many as there are slots cost the same."""
KNEE = 0.5
"""Percent that a token takes longer for each percent of sequences, up to the knee."""
_WINDOW_S = 1.0
"""Frames are gathered for so long before they move the curve."""
_BLEND = 0.1
"""Weight of one window against what is known."""


class LatencyModel:
    """PTL of one kind of engine.

    Args:
        points: (running sequences, seconds per token of each), running ascending.

    Raises: ValueError if there are fewer than two points, or not in order.
    """

    def __init__(self, points: Sequence[tuple[int, float]] = FLAT) -> None:
        if len(points) < 2 or any(
            a[0] >= b[0] or min(a[1], b[1]) <= 0 for a, b in itertools.pairwise(points)
        ):
            raise ValueError(f"a latency profile is two or more (running, seconds): {points}")
        self._running = [running for running, _ in points]
        self._seconds = [seconds for _, seconds in points]
        self._knee: int | None = None  # asked at every event: kept until a point moves

    @property
    def points(self) -> tuple[tuple[int, float], ...]:
        return tuple(zip(self._running, self._seconds, strict=True))

    def seconds(self, running: float) -> float:
        """Seconds per token of one sequence while `running` run.

        >>> LatencyModel([(1, 0.01), (11, 0.02)]).seconds(6)
        0.015
        """
        known, seconds = self._running, self._seconds
        if running <= known[0]:
            return seconds[0]
        at = min(bisect_left(known, running), len(known) - 1)
        slope = (seconds[at] - seconds[at - 1]) / (known[at] - known[at - 1])
        return max(seconds[0], seconds[at - 1] + slope * (running - known[at - 1]))

    def knee(self) -> int:
        """Running sequences up to which one more costs almost no time: a measured point.

        Beyond it the time of a token grows by more than `KNEE` percent for each
        percent of sequences, so that more of them hardly sample more per second.

        >>> LatencyModel([(1, 0.0108), (32, 0.0116), (64, 0.0171), (128, 0.0282)]).knee()
        32
        """
        if self._knee is None:
            self._knee = self._find_knee()
        return self._knee

    def _find_knee(self) -> int:
        points = self.points
        for (few, before), (many, after) in itertools.pairwise(points):
            if math.log(after / before) > KNEE * math.log(many / few):
                return few
        return points[-1][0]

    def blend(self, running: float, seconds: float) -> None:
        """Move the nearest points towards a measurement at `running`, in proportion.

        More sequences never take less time: whatever else contradicts the moved points is moved
        to them, for it is older.
        """
        if not self._running[0] <= running <= self._running[-1] or seconds <= 0:
            return
        self._knee = None
        at = max(1, bisect_left(self._running, running))
        before, after = self._running[at - 1], self._running[at]
        share = (running - before) / (after - before)
        change = seconds / self.seconds(running)
        low = self._seconds[at - 1] * change ** (_BLEND * (1 - share))
        high = self._seconds[at] * change ** (_BLEND * share)
        if low > high:  # the nearer one holds
            low = high = low if share < 0.5 else high
        fewer, more = self._seconds[: at - 1], self._seconds[at + 1 :]
        self._seconds = [
            *(min(seconds, low) for seconds in fewer),
            low,
            high,
            *(max(seconds, high) for seconds in more),
        ]


class LatencyMeter:
    """Tokens of one engine, with the seconds that each took -> measurements of its latency.

    A token is paired with the time since the one before it of the same response, whenever its
    frame comes: a frame in which one response ends says nothing of the others' tokens, which
    are on their way.
    """

    def __init__(self) -> None:
        self._since = -1.0
        self._tokens = 0
        self._leg_s = 0.0  # seconds that the tokens took, each of its own response
        self._running = 0.0  # sum over tokens

    def frame(
        self, now: float, running: int, tokens: int, leg_s: float
    ) -> tuple[float, float] | None:
        """A frame has come; (mean running, seconds per token) once per window, else None.

        Args:
            now: in the engine's own time, which stands still while it loads.
            running: sequences that ran up to now.
            tokens: in the frame.
            leg_s: seconds since the newest token before the frame, summed over its responses.
        """
        if self._since < 0:
            self._since = now
        self._tokens += tokens
        self._leg_s += leg_s
        self._running += running * tokens
        if now - self._since < _WINDOW_S or not self._tokens:
            return None
        found = self._running / self._tokens, self._leg_s / self._tokens
        self._since, self._tokens, self._leg_s, self._running = now, 0, 0.0, 0.0
        return found
