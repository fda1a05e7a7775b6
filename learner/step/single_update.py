"""A step of one optimizer step: its gradient is built group by group as they arrive.

Turns `CloseStep` into an applied or skipped optimizer step. Invariant: the gradient is
that of the held groups, or `_dirty` is set and it is built again from them before it is
used.
"""

from __future__ import annotations

from collections.abc import Sequence

from learner.step.base import LearnerStep
from learner.step.loss_pass import Metrics
from pipeline.wire.messages import CloseStep, TrainGroup


class SingleUpdateStep(LearnerStep):
    """One rank's part of the step's gradient."""

    def _train(self, groups: Sequence[TrainGroup]) -> Metrics:
        if self._dirty:
            self._dirty = not self._passes.rebuild_gradient(list(self._held.values()))
        self._compute_fixed(groups)
        return self._passes.forward_backward(groups)

    def _apply(self, close: CloseStep, version: int) -> Metrics | None:
        kept = {name: group for name, group in self._held.items() if name in close.groups}
        if len(kept) != len(self._held):
            self._held, self._dirty = kept, True
        found = self._passes.apply_step(
            list(self._held.values()), close.normaliser, version, built=not self._dirty
        )
        return None if found is None else {**found[1], "updates": 1.0}
