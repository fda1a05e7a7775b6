"""Counts refused frames and reports them once a second; ten in a minute end a peer.

Turns (what, who, why, now) into a verdict and lines for the log. Knows no socket and no
clock. Invariant: memory is bounded, whatever is sent.
"""

from __future__ import annotations

from collections import deque

MOST = 10
"""Refused frames of one peer within `WITHIN_S` after which it is not to be trusted."""
WITHIN_S = 60.0
_TELL_S = 1.0
_KNOWN = 1024  # senders that are kept apart; the ones not heard for longest are forgotten


class RejectedFrames:
    """`counts`: by what was refused (`control`, `tokens`, `role`), since the start."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._strikes: dict[str, deque[float]] = {}
        self._told = -_TELL_S
        self._untold, self._last = 0, ""

    def note(self, what: str, who: str, why: str, now: float) -> bool:
        """One refused frame. True: its sender has sent too many of them.

        Args:
            who: a name or identity; '' if the frame does not tell.
        """
        self.counts[what] = self.counts.get(what, 0) + 1
        self._untold += 1
        self._last = f"{what} frame of {who or 'somebody'} refused: {why}"
        if not who:
            return False
        strikes = self._strikes.pop(who, None) or deque[float](maxlen=MOST)
        self._strikes[who] = strikes  # the newest is the last
        if len(self._strikes) > _KNOWN:
            del self._strikes[next(iter(self._strikes))]
        strikes.append(now)
        if len(strikes) < MOST or now - strikes[0] > WITHIN_S:
            return False
        del self._strikes[who]
        return True

    def line(self, now: float) -> str:
        """Returns a line for the log, at most once a second: the newest, and how many; '': none."""
        if not self._untold or now - self._told < _TELL_S:
            return ""
        more = f" ({self._untold - 1} more like it since the last line)" if self._untold > 1 else ""
        self._told, self._untold = now, 0
        return self._last + more
