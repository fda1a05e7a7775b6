"""A step of several optimizer steps, or one whose passes all ranks run together.

Turns `TrainGroup`s into held groups with their old and reference logprobs,
computed when they arrive, while others still generate; and `CloseStep` into
mini-batches, an optimizer step for each. The policy version advances once.
Where passes communicate (ZeRO 3) nothing but the reference model runs before
the close. Same methods as `StepGradient`. Knows no socket.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

from learner.forward.micro_batches import counted_tokens
from learner.step.mini_batches import mini_batches
from learner.step.passes import Metrics, NotFinite, Passes, merge
from learner.step.single_update import Report, failed, trained
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import CloseStep, TrainGroup

log = logging.getLogger(__name__)


class HeldStep:
    """One rank's groups of the step, and the optimizer steps over them."""

    def __init__(self, passes: Passes, section: LearnerConfig) -> None:
        self._passes = passes
        self._section = section
        self._old = needs_old(section)
        self._held: dict[int, TrainGroup] = {}

    def add(self, groups: Sequence[TrainGroup]) -> list[Report]:
        """Hold these groups; one report for each, its metrics come with the close."""
        groups = [group for group in groups if group.group not in self._held]  # sent twice
        if not groups:
            return []
        again = False
        try:
            for group in groups:
                _check(group)
            self._passes.compute_reference(groups)
            if self._old and not self._passes.zero.in_rounds:
                self._passes.compute_old(groups)
        except NotFinite as error:
            return failed(self.add, self._passes, groups, error)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not self._passes.out_of_memory(error):
                raise
            again = True
        if again:  # not while the error holds what the pass had allocated
            return self.add(groups)
        self._held.update((group.group, group) for group in groups)
        return trained(groups, {})

    @property
    def empty(self) -> bool:
        """Whether no group is in the step so far."""
        return not self._held

    def forget(self, group: int) -> bool:
        """Take a group out of the step again; whether that left nothing."""
        found = self._held.pop(group, None)
        if found is None:
            return False
        self._passes.forget([found])
        return self.empty

    def close(self, close: CloseStep, version: int) -> dict[str, float] | None:
        """Apply the step's updates (all ranks together). None: none was applied.

        Every mini-batch has its own normaliser. One whose gradient is not finite
        twice is left out; the others count.
        """
        if not close.groups:
            raise ValueError(f"step {close.step} closes without a group")
        mine = [self._held[name] for name in close.groups if name in self._held]
        if self._old and self._passes.zero.in_rounds:
            self._recompute_old(mine)
        sums: Metrics = {}
        norms: list[float] = []
        tokens, rate = 0.0, 0.0
        section = self._section
        for names in mini_batches(
            close.groups, updates=section.updates, epochs=section.epochs, step=close.step
        ):
            groups = [self._held[name] for name in names if name in self._held]
            [normaliser] = self._passes.zero.total(sum(map(counted_tokens, groups)))
            if not normaliser > 0:  # weight 0 only
                continue
            applied = self._passes.apply(groups, normaliser, version, built=False)
            if applied is None:
                log.warning("step %d: an update over groups %s is left out", close.step, names)
                continue
            merge(sums, applied[0])
            norms.append(applied[1]["grad_norm"])
            tokens, rate = tokens + normaliser, applied[1]["lr"]
        self.clear()
        if not norms:
            return None
        return {
            **self._means(sums, tokens),
            "grad_norm": sum(norms) / len(norms),
            "lr": rate,
            "updates": float(len(norms)),
        }

    def clear(self) -> None:
        """Forget all groups."""
        self._passes.zero.zero_gradients()
        self._passes.forget(self._held.values())
        self._passes.restore_cap()
        self._passes.forget_streams()
        self._held.clear()

    def _recompute_old(self, groups: Sequence[TrainGroup]) -> None:
        try:
            self._passes.compute_old(groups)
        except NotFinite as error:  # kept all the same: its update is left out, on all ranks
            log.warning("%s", error)

    def _means(self, mine: Metrics, tokens: float) -> Metrics:
        """Sums of all ranks, the loss over all tokens, the rest over those that were computed."""
        total: Metrics = {}
        for sums in self._passes.zero.each(mine):
            merge(total, sums)
        computed = total.pop("computed", 0.0)
        return {
            **{
                name: value
                if name.endswith("_max")
                else value / (tokens if name == "loss" else computed)
                for name, value in total.items()
            },
            "computed_share": computed / tokens,
        }


def needs_old(section: LearnerConfig) -> bool:
    """Whether old logprobs come from a forward pass of their own."""
    return section.old_logprobs == "always" or section.updates * section.epochs > 1


def _check(group: TrainGroup) -> None:
    for member in group.members:
        if not math.isfinite(member.advantage) or not math.isfinite(member.weight):
            raise NotFinite(f"advantage {member.advantage}, weight {member.weight}")
