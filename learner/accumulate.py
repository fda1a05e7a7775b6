"""The gradient of one step, built group by group as they arrive.

Turns `TrainGroup`s into accumulated gradient and reports, and `CloseStep` into
an applied or skipped optimizer step. Invariant: the gradient is that of the
groups in `_held`, or `_dirty` is set and it is built again from them before it
is used. Groups are held until the step is done for that. Knows no socket.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from learner.forward import MicroBatch, counted_tokens, loss_batch, micro_batches
from learner.losses import Loss
from learner.zero import Zero
from pipeline.messages import CloseStep, GroupFailed, GroupTrained, TrainGroup

log = logging.getLogger(__name__)


class NotFinite(Exception):
    """The loss of a micro-batch is NaN or infinite; its backward was not run."""


class StepGradient:
    """One rank's part of the step's gradient."""

    def __init__(
        self, zero: Zero, loss: Loss, *, temperature: float, token_cap: int, importance_cap: float
    ) -> None:
        self._zero = zero
        self._loss = loss
        self._temperature = temperature
        self._full_cap = self._cap = token_cap
        self._importance_cap = importance_cap
        self._held: dict[int, TrainGroup] = {}
        self._dirty = False

    def add(self, groups: Sequence[TrainGroup]) -> list[GroupTrained | GroupFailed]:
        """Forward and backward of these groups, together; one report for each."""
        groups = [group for group in groups if group.group not in self._held]  # sent twice
        if not groups:
            return []
        if self._dirty:
            self._build_again()
        try:
            metrics = self._run(groups)
        except NotFinite as error:
            if len(groups) > 1:  # one of them spoils it: each alone
                return [report for group in groups for report in self.add([group])]
            group = groups[0]
            log.warning("group %d of step %d: %s", group.group, group.step, error)
            return [GroupFailed(step=group.step, group=group.group, why=str(error))]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or self._cap < self._full_cap:
                raise
            self._cap = max(1, self._cap // 2)
            log.warning("out of memory: micro-batches of %d tokens for this step", self._cap)
            self._dirty = True
            return self.add(groups)
        reports: list[GroupTrained | GroupFailed] = []
        for group in groups:
            self._held[group.group] = group
            # The metrics are sums over all of these groups, so one report carries them.
            reports.append(
                GroupTrained(
                    step=group.step,
                    group=group.group,
                    tokens=counted_tokens(group),
                    metrics={} if reports else metrics,
                )
            )
        return reports

    @property
    def empty(self) -> bool:
        """Whether no group is in the step so far."""
        return not self._held

    def forget(self, group: int) -> bool:
        """Take a group out of the step again; whether that left nothing."""
        if self._held.pop(group, None) is None:
            return False
        self._dirty = True
        return self.empty

    def close(self, close: CloseStep, updates: int) -> dict[str, float] | None:
        """Apply the step (all ranks together). None: skipped, the weights are untouched.

        A gradient that is not finite is built once more, in micro-batches of half
        the size; the second time the step is skipped. Every rank goes the same way.
        """
        if not close.groups:
            raise ValueError(f"step {close.step} closes without a group")
        kept = {name: group for name, group in self._held.items() if name in close.groups}
        if len(kept) != len(self._held):
            self._held, self._dirty = kept, True
        fine = self._build_again() if self._dirty else True
        for attempt in range(2):
            if fine and not self._zero.has_gradient():
                self._run_nothing()
            if self._zero.finite(close.normaliser, fine_here=fine):
                metrics = self._zero.step(close.normaliser, updates)
                self.clear()
                return metrics
            if attempt == 0:
                log.warning("step %d: gradient not finite; building it again", close.step)
                self._cap = max(1, self._full_cap // 2)
                fine = self._build_again()
        self.clear()
        return None

    def clear(self) -> None:
        """Forget all groups and their gradient."""
        self._zero.zero_gradients()
        self._held.clear()
        self._dirty = False
        self._cap = self._full_cap

    def _build_again(self) -> bool:
        """The gradient of the held groups from nothing; False if a loss is not finite now."""
        self._zero.zero_gradients()
        self._dirty = False
        try:
            if self._held:
                self._run(list(self._held.values()))
        except NotFinite as error:
            log.warning("a group that was finite before: %s", error)
            self._dirty = True
        return not self._dirty

    def _run(self, groups: Sequence[TrainGroup]) -> dict[str, float]:
        """Forward and backward; raises NotFinite before the backward that would spoil."""
        total: dict[str, float] = {}
        batches = micro_batches(groups, self._cap, self._zero.device)
        for index, batch in enumerate(batches):
            loss, metrics = self._forward(batch)
            if not bool(torch.isfinite(loss)):
                self._dirty = self._dirty or index > 0
                raise NotFinite(f"the loss is {loss.item()}")
            self._zero.backward(loss)
            for name, value in metrics.items():
                if name.endswith("_max"):
                    total[name] = max(value, total.get(name, value))
                else:
                    total[name] = total.get(name, 0.0) + value
        return total

    def _forward(self, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, float]]:
        found = loss_batch(self._zero.engine, batch, self._temperature, self._importance_cap)
        return self._loss.loss(found)

    def _run_nothing(self) -> None:
        """A rank without work takes part all the same: ZeRO 1 fails without a backward."""
        tokens_BL = torch.zeros((1, 2), dtype=torch.long, device=self._zero.device)
        logits = self._zero.engine(input_ids=tokens_BL, use_cache=False).logits
        self._zero.backward(logits.float().sum() * 0.0)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
