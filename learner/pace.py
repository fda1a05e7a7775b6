"""Holds a rank's passes back to the pace of emulated hardware.

A pass computes for real; then the rank waits until the emulated one would have been done.
"""

from __future__ import annotations

from pipeline.hardware.costs import TokenCost
from pipeline.system.sleep import sleep_until


class PassPace:
    """The pace of one rank. `cost`: of the emulated hardware; None: as fast as here."""

    def __init__(self, cost: TokenCost | None) -> None:
        self._cost = cost
        self._late_s = 0.0

    def wait_training(self, begun_s: float, tokens: int) -> None:
        """A forward and backward pass over so many tokens, begun then, has been computed."""
        if self._cost is not None:
            self._late_s += sleep_until(begun_s + self._cost.train_s * tokens)

    def wait_forward(self, begun_s: float, tokens: int) -> None:
        """A forward pass for logprobs of so many tokens, begun then, has been computed."""
        if self._cost is not None:
            self._late_s += sleep_until(begun_s + self._cost.logprob_s * tokens)

    def take_late(self) -> dict[str, float]:
        """Return `paced_late_s`, by how many seconds real passes were slower than emulated ones
        since the last call; nothing without a pace."""
        late_s, self._late_s = self._late_s, 0.0
        return {} if self._cost is None else {"paced_late_s": late_s}
