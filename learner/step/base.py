"""Base of both kinds of learner step: groups held until the step closes, and their reports.

Turns `TrainGroup`s into the passes of a subclass and one report for each group. Groups
whose numbers are not finite are tried again one by one, so that the bad one is found; a
batch that ran out of memory is tried again in smaller micro-batches. Knows no socket.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Sequence

from learner.step.loss_pass import Metrics
from learner.step.passes import NotFinite, Passes
from pipeline.wire.messages import CloseStep, GroupFailed, GroupTrained, TrainGroup

log = logging.getLogger(__name__)
Report = GroupTrained | GroupFailed


class LearnerStep(abc.ABC):
    """One rank's groups of the open step."""

    def __init__(self, passes: Passes, *, old: bool = False) -> None:
        """`old`: old logprobs come from a forward pass of their own, not from the one that is
        trained on."""
        self._passes = passes
        self._old = old
        self._held: dict[int, TrainGroup] = {}
        self._dirty = False
        """The gradient so far, if there is one, is not that of the held groups."""

    @abc.abstractmethod
    def _train(self, groups: Sequence[TrainGroup]) -> Metrics:
        """Run what these groups need on arrival; returns sums over them. Raises NotFinite."""

    @abc.abstractmethod
    def _apply(self, close: CloseStep, version: int) -> Metrics | None:
        """Update the weights. None: they are untouched."""

    def add_groups(self, groups: Sequence[TrainGroup]) -> list[Report]:
        """Train on these groups together and hold them; one report for each."""
        groups = [group for group in groups if group.group not in self._held]  # sent twice
        if not groups:
            return []
        metrics: Metrics | None = None
        try:
            metrics = self._train(groups)
        except NotFinite as error:
            self._dirty = self._dirty or error.spoiled
            return self._failed_reports(groups, error)
        except RuntimeError as error:
            self._passes.lower_limit(error, together=False)  # none here waits for other ranks
            self._dirty = True
        if metrics is None:  # not in the handler: the error holds what the pass had allocated
            return self.add_groups(groups)
        self._held.update((group.group, group) for group in groups)
        return self._trained_reports(groups, metrics)

    @property
    def is_empty(self) -> bool:
        """True if the step has no group so far."""
        return not self._held

    def forget_group(self, group: int) -> bool:
        """Take a group out of the step again; True if that left none."""
        found = self._held.pop(group, None)
        if found is None:
            return False
        self._passes.forget_groups([found])
        self._dirty = True
        return self.is_empty

    def close(self, close: CloseStep, version: int) -> Metrics | None:
        """Apply the step (all ranks together) and forget its groups. None: it was skipped."""
        if not close.groups:
            raise ValueError(f"step {close.step} closes without a group")
        metrics = self._apply(close, version)
        if metrics is not None:
            metrics["micro_batch_tokens"] = float(self._passes.limit.tokens)
        self.clear_groups()
        return metrics

    def clear_groups(self) -> None:
        """Forget all groups and their gradient."""
        self._passes.forget_gradient()
        self._passes.forget_groups(self._held.values())
        self._passes.limit.restore()
        self._passes.forget_streams()
        self._held.clear()
        self._dirty = False

    def _compute_fixed(self, groups: Sequence[TrainGroup]) -> None:
        """Compute reference and old logprobs, as far as this rank may run its model alone."""
        self._passes.compute_reference(groups)
        if self._old and not self._passes.zero.collective_passes:
            self._passes.compute_old(groups)
        else:
            self._passes.release_streamed(groups)

    def _failed_reports(self, groups: Sequence[TrainGroup], error: NotFinite) -> list[Report]:
        """Find the group that is not finite: each is added alone."""
        self._passes.forget_groups(groups)
        if len(groups) > 1:
            return [report for group in groups for report in self.add_groups([group])]
        [group] = groups
        log.warning("group %d of step %d: %s", group.group, group.step, error)
        return [GroupFailed(step=group.step, group=group.group, why=str(error))]

    def _trained_reports(self, groups: Sequence[TrainGroup], metrics: Metrics) -> list[Report]:
        """One report for each group; the first carries the metrics, which are sums over all."""
        return [
            GroupTrained(
                step=group.step,
                group=group.group,
                tokens=self._passes.loss_pass.aggregation.counted(group),
                metrics={} if at else metrics,
            )
            for at, group in enumerate(groups)
        ]
