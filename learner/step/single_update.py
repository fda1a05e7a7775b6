"""The gradient of a step with one optimizer step, built group by group as they arrive.

Turns `TrainGroup`s into accumulated gradient and reports, and `CloseStep` into
an applied or skipped optimizer step. Invariant: the gradient is that of the
groups in `_held`, or `_dirty` is set and it is built again from them before it
is used. Groups are held until the step is done for that. Knows no socket.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from learner.forward.micro_batches import counted_tokens
from learner.step.passes import NotFinite, Passes
from pipeline.wire.messages import CloseStep, GroupFailed, GroupTrained, TrainGroup

log = logging.getLogger(__name__)
Report = GroupTrained | GroupFailed


class SingleUpdateStep:
    """One rank's part of the step's gradient.

    `old`: take old logprobs from a forward pass of their own, not from the one
    that is trained on.
    """

    def __init__(self, passes: Passes, *, old: bool = False) -> None:
        self._passes = passes
        self._old = old
        self._held: dict[int, TrainGroup] = {}
        self._dirty = False

    def add(self, groups: Sequence[TrainGroup]) -> list[Report]:
        """Forward and backward of these groups, together; one report for each."""
        groups = [group for group in groups if group.group not in self._held]  # sent twice
        if not groups:
            return []
        again, metrics = False, dict[str, float]()
        if self._dirty:
            self._dirty = not self._passes.rebuild_gradient(list(self._held.values()))
        try:
            self._passes.compute_reference(groups)
            if self._old:
                self._passes.compute_old(groups)
            metrics = self._passes.forward_backward(groups)
        except NotFinite as error:
            self._dirty = self._dirty or error.spoiled
            return failed_reports(self.add, self._passes, groups, error)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not self._passes.out_of_memory(error):
                raise
            self._dirty = again = True
        if again:  # not while the error holds what the pass had allocated
            return self.add(groups)
        self._held.update((group.group, group) for group in groups)
        return trained_reports(groups, metrics)

    @property
    def empty(self) -> bool:
        """Whether no group is in the step so far."""
        return not self._held

    def forget(self, group: int) -> bool:
        """Take a group out of the step again; whether that left nothing."""
        found = self._held.pop(group, None)
        if found is None:
            return False
        self._passes.forget_groups([found])
        self._dirty = True
        return self.empty

    def close(self, close: CloseStep, version: int) -> dict[str, float] | None:
        """Apply the step (all ranks together). None: skipped, the weights are untouched."""
        if not close.groups:
            raise ValueError(f"step {close.step} closes without a group")
        kept = {name: group for name, group in self._held.items() if name in close.groups}
        if len(kept) != len(self._held):
            self._held, self._dirty = kept, True
        found = self._passes.apply_step(
            list(self._held.values()), close.normaliser, version, built=not self._dirty
        )
        self.clear()
        return None if found is None else {**found[1], "updates": 1.0}

    def clear(self) -> None:
        """Forget all groups and their gradient."""
        self._passes.zero.zero_gradients()
        self._passes.forget_groups(self._held.values())
        self._passes.restore_cap()
        self._passes.forget_streams()
        self._held.clear()
        self._dirty = False


def trained_reports(groups: Sequence[TrainGroup], metrics: dict[str, float]) -> list[Report]:
    """One report for each group; the first carries the metrics, which are sums over all."""
    return [
        GroupTrained(
            step=group.step,
            group=group.group,
            tokens=counted_tokens(group),
            metrics={} if at else metrics,
        )
        for at, group in enumerate(groups)
    ]


def failed_reports(
    add: Callable[[Sequence[TrainGroup]], list[Report]],
    passes: Passes,
    groups: Sequence[TrainGroup],
    error: NotFinite,
) -> list[Report]:
    """Find the group that is not finite: each is added alone."""
    passes.forget_groups(groups)
    if len(groups) > 1:
        return [report for group in groups for report in add([group])]
    [group] = groups
    log.warning("group %d of step %d: %s", group.group, group.step, error)
    return [GroupFailed(step=group.step, group=group.group, why=str(error))]
