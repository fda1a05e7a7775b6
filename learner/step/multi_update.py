"""A step of several optimizer steps, or one whose passes all ranks run together.

Holds groups with their old and reference logprobs, computed when they arrive, while others
still generate; turns `CloseStep` into mini-batches, an optimizer step for each. The policy
version advances once. Where passes communicate (ZeRO 3) only the reference model runs
before the close.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from learner.step.base import LearnerStep
from learner.step.loss_pass import Metrics
from learner.step.mini_batches import mini_batches
from learner.step.passes import NotFinite, Passes, merge_metrics
from pipeline.config.logprob_uses import needs_old
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import CloseStep, TrainGroup, floats

log = logging.getLogger(__name__)


class MultiUpdateStep(LearnerStep):
    """One rank's groups of the step, and the optimizer steps over them."""

    def __init__(self, passes: Passes, section: LearnerConfig) -> None:
        super().__init__(passes, old=needs_old(section))
        self._section = section

    def _train(self, groups: Sequence[TrainGroup]) -> Metrics:
        for group in groups:
            _check(group)
        self._compute_fixed(groups)
        return {}  # the metrics come with the close

    def _apply(self, close: CloseStep, version: int) -> Metrics | None:
        """Apply the step's updates. None: none was applied.

        Every mini-batch has its own normaliser. One whose gradient is not finite
        twice is left out; the others count.
        """
        mine = [self._held[name] for name in close.groups if name in self._held]
        if self._old and self._passes.zero.collective_passes:
            self._recompute_old(mine)
        sums: Metrics = {}
        norms: list[float] = []
        scales: list[float] = []
        counted = self._passes.loss_pass.aggregation.counted
        tokens, rate = 0.0, 0.0
        section = self._section
        for names in mini_batches(
            close.groups, updates=section.updates, epochs=section.epochs, step=close.step
        ):
            groups = [self._held[name] for name in names if name in self._held]
            [normaliser] = self._passes.zero.sum_over_ranks(sum(map(counted, groups)))
            if not normaliser > 0:  # weight 0 only
                continue
            applied = self._passes.apply_step(groups, normaliser, version, built=False)
            if applied is None:
                log.warning("step %d: an update over groups %s is left out", close.step, names)
                continue
            merge_metrics(sums, applied[0])
            norms.append(applied[1]["grad_norm"])
            scales += [applied[1]["lr_scale"]] if "lr_scale" in applied[1] else []
            tokens, rate = tokens + normaliser, applied[1]["lr"]
        if not norms:
            return None
        return {
            **self._means(sums, tokens),
            "grad_norm": sum(norms) / len(norms),
            "lr": rate,
            "updates": float(len(norms)),
            **({"lr_scale": sum(scales) / len(scales)} if scales else {}),
        }

    def _recompute_old(self, groups: Sequence[TrainGroup]) -> None:
        try:
            self._passes.compute_old(groups)
        except NotFinite as error:  # kept: its update is left out, on all ranks
            log.warning("%s", error)
        except RuntimeError as error:
            self._passes.lower_limit(error, together=True)

    def _means(self, mine: Metrics, tokens: float) -> Metrics:
        """Average over all ranks: the loss per token, other metrics per computed token."""
        total: Metrics = {}
        for sums in self._passes.zero.gather_from_ranks(mine):
            merge_metrics(total, sums)
        computed = total.pop("computed", 0.0)
        return {
            **{
                name: value
                if name.endswith("_max")
                else value / (tokens if name == "loss" else computed or 1.0)
                for name, value in total.items()
            },
            "computed_share": computed / tokens,
        }


def _check(group: TrainGroup) -> None:
    for member in group.members:
        if not math.isfinite(member.advantage) or not math.isfinite(member.weight):
            raise NotFinite(f"advantage {member.advantage}, weight {member.weight}")
        if not np.isfinite(floats(member.token_advantages)).all():
            raise NotFinite(f"an advantage of a token of trajectory {member.trajectory}")
