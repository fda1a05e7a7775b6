"""Counts what engines answered about the weights that they loaded.

Turns answers to loads into figures of a step and of the run. Pure.
"""

from __future__ import annotations

from pipeline.coordinator.events import WeightsLoaded


class WeightProofs:
    """Loads since the last step's record, and since the start or resume."""

    def __init__(self) -> None:
        self.proved = 0  # loads of the run
        self.unsure = 0  # loads of the run that could be of the version before, or of a part
        self._of_step: list[WeightsLoaded] = []

    def add(self, event: WeightsLoaded) -> None:
        """Count the load of an engine that was admitted."""
        self.proved += event.proved
        self.unsure += not event.proved
        self._of_step.append(event)

    def take_step(self) -> dict[str, int]:
        """Return the figures of the loads since the last call; nothing without any.

        `weights_proved` and `weights_unsure` count loads, `tensors_checked` is the fewest tensors
        that an engine held and compared, of the `tensors_published`.
        """
        loads, self._of_step = self._of_step, []
        if not loads:
            return {}
        proved = sum(load.proved for load in loads)
        return {
            "weights_proved": proved,
            "weights_unsure": len(loads) - proved,
            "tensors_checked": min(load.tensors_checked for load in loads),
            "tensors_published": max(load.tensors for load in loads),
        }
