"""Holds the steps of a real engine back to the pace of an emulated one.

A step computes for real, and then sleeps until the emulated hardware would have been done, so that
its core is idle as a host is while its card computes. What passes between two steps of a busy
engine (scheduling, messages) is within the emulated cost, as on a real one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from pipeline.hardware.costs import EngineCost
from pipeline.wire.fields import PacedSteps

FREE = "free-"
"""Requests whose id begins so are not held back: evaluations, probes of new weights."""
_HOST_S = 5e-3
"""Seconds between two steps up to which the engine counts as busy in between."""


class Load(msgspec.Struct):
    """What one step computes; requests that are not held back do not count."""

    running: int = 0  # sequences
    cached: int = 0  # tokens that they hold
    prefilled: int = 0  # tokens computed besides the newest of each sequence

    def add(self, request: str, held: int, computed: int) -> None:
        """Count a sequence that holds `held` tokens and computes `computed` more."""
        if not request.startswith(FREE):
            self.running += 1
            self.cached += held
            self.prefilled += computed if computed > 1 else 0


class StepPace:
    """The pace of one engine: call `begin` before and `end` after each of its steps.

    Args:
        cost: of the emulated engine.
        clock, sleep: replaced in tests.
    """

    def __init__(
        self,
        cost: EngineCost,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cost, self._clock, self._sleep = cost, clock, sleep
        self._due_s = -1.0  # of the step under way, or of the last one
        self._paced = False
        self._steps = self._late = 0
        self._late_s = 0.0

    def begin(self, load: Load) -> None:
        """A step with this load begins; one without paced sequences is not held back."""
        self._paced = load.running > 0
        if not self._paced:
            return
        now = self._clock()
        begun = self._due_s if 0 <= now - self._due_s < _HOST_S else now
        self._due_s = begun + self._cost.step_s(load.running, load.cached, load.prefilled)

    def end(self) -> None:
        """The step has been computed: wait until it is due."""
        if not self._paced:
            return
        self._steps += 1
        left = self._due_s - self._clock()
        if left > 0:
            self._sleep(left)
        else:
            self._late += 1
            self._late_s -= left
            self._due_s -= left

    def take_counts(self) -> PacedSteps:
        """Return the counts since the last call."""
        found = PacedSteps(steps=self._steps, late=self._late, late_s=self._late_s)
        self._steps = self._late = 0
        self._late_s = 0.0
        return found
