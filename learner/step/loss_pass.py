"""Runs one micro-batch through the model and the loss, with all that the settings add to it.

Turns a `MicroBatch` into the loss to be differentiated and sums of metrics: places old and
reference logprobs, weighs by importance, leaves out responses whose engine and learner disagree
too much, adds the bonus for entropy. Knows no optimizer and no message.
Axes as in `learner.forward.micro_batches`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from learner.forward.micro_batches import Forward, MicroBatch, loss_batch
from learner.losses import Loss
from learner.step.aggregation import aggregation_of
from learner.step.importance_weights import (
    drifted_rows,
    importance_weights,
    rejected_rows,
    shaped_weights,
)
from learner.step.loss_state import LossState
from learner.step.uncertain_turns import uncertain_turns
from learner.streaming.fixed_logprobs import ByTrajectory, align
from pipeline.config.logprob_uses import importance_mode
from pipeline.config.schema import LearnerConfig

Metrics = dict[str, float]


class LossPass:
    """The loss of one rank, and what the learner's section says about it."""

    def __init__(
        self,
        loss: Loss,
        section: LearnerConfig,
        *,
        temperature: float,
        max_tokens: int = 0,
        reference: bool = False,
    ) -> None:
        """`max_tokens`: `sampling.max_tokens`; `reference`: there is a reference model."""
        self.loss: Any = loss
        self._section = section
        self._temperature, self._max_tokens = temperature, max_tokens
        self.state = LossState(loss)
        self.aggregation = aggregation_of(section, loss, max_tokens)
        own = getattr(loss, "own_importance", False)
        self._importance = "off" if own else importance_mode(section)
        self._entropy = (
            section.entropy
            or section.entropy_bonus > 0
            or section.turn_share < 1
            or bool(getattr(loss, "needs_entropy", False))
        )
        self.whole_groups = bool(getattr(loss, "whole_groups", False))
        # With a reference model the KL of all members is a metric.
        self.skips_silent = (
            not reference
            and not section.entropy_bonus
            and bool(getattr(loss, "silent_without_advantage", False))
        )

    def forward(
        self, model: Forward, batch: MicroBatch, old: ByTrajectory, reference: ByTrajectory
    ) -> tuple[Tensor, Metrics]:
        """Return the loss, a sum over tokens, and sums of metrics.

        Args:
            old, reference: logprobs that were computed before; empty: old ones are those of this
                pass, and there is no reference model.
        """
        section = self._section
        bonus = section.entropy_bonus
        found = loss_batch(
            model,
            batch,
            self._temperature,
            entropy=self._entropy,
            entropy_gradient=bonus > 0,
            max_tokens=self._max_tokens,
        )
        old_BT, reference_BT = found.old_logprobs_BT, None
        if old:
            old_BT = align(old, batch.trajectories, found.mask_BT, old_BT)
        if batch.old_BT is not None:  # of older versions; NaN elsewhere
            old_BT = batch.old_BT.where(batch.old_BT.isfinite(), old_BT)
        if reference:
            reference_BT = align(reference, batch.trajectories, found.mask_BT, found.logprobs_BT)
        now_BT = found.logprobs_BT.detach()
        known_BT = found.mask_BT > 0  # outside the behaviour logprob is a meaningless zero
        unknown_BT: Tensor | None = None
        if batch.foreign_B is not None:
            # Nobody knows what a foreign response was sampled with: it counts as sampled now. NaN
            # of any other is an engine's, and makes the loss NaN, too.
            unknown_BT = found.behaviour_BT.isnan() & (batch.foreign_B > 0).unsqueeze(1)
            old_BT, known_BT = now_BT.where(unknown_BT, old_BT), known_BT & ~unknown_BT
        behaviour_BT = found.behaviour_BT.where(known_BT, old_BT)
        mode = self._importance
        importance_BT, cut_BT = importance_weights(
            old_BT, behaviour_BT, mode=mode, cap=section.importance_cap, mask_BT=found.mask_BT
        )
        if unknown_BT is not None:
            shaped_BT = shaped_weights(now_BT, section.policy_shaping)
            importance_BT = shaped_BT.where(unknown_BT, importance_BT)
        rejected_B = rejected_rows(
            old_BT,
            behaviour_BT,
            found.mask_BT,
            below=section.reject_below,
            band=section.reject_band,
        )
        if section.reject_drift:
            drifted_B = drifted_rows(
                now_BT, behaviour_BT, found.mask_BT, limit=section.reject_drift
            )
            rejected_B = rejected_B.maximum(drifted_B * (found.advantages_B < 0))
        entropy_BT = found.entropy_BT
        mask_BT = found.mask_BT
        if section.turn_share < 1:
            assert entropy_BT is not None
            mask_BT = uncertain_turns(entropy_BT.detach(), mask_BT, section.turn_share)
        full = dataclasses.replace(
            found,
            mask_BT=mask_BT,
            lengths_B=mask_BT.sum(1),
            old_logprobs_BT=old_BT,
            behaviour_BT=behaviour_BT,
            importance_BT=importance_BT,
            reference_BT=reference_BT,
            entropy_BT=None if entropy_BT is None else entropy_BT.detach(),
            weights_B=found.weights_B * (1 - rejected_B),
        )
        loss, metrics = self.loss.loss(full)
        count_BT = found.mask_BT * found.weights_B.unsqueeze(1)
        metrics["computed"] = count_BT.sum().item()
        if entropy_BT is not None:
            entropy = (entropy_BT * full.weights_B.unsqueeze(1) * full.mask_BT).sum()
            metrics["entropy"] = (entropy_BT.detach() * count_BT).sum().item()
            if bonus:
                loss = loss - bonus * entropy
        own_BT = count_BT  # of tokens that an engine sampled for their group
        if batch.foreign_B is not None:
            own_BT = count_BT * (1 - batch.foreign_B).unsqueeze(1)
            metrics["foreign"] = (count_BT - own_BT).sum().item()
        if mode != "off":
            metrics["importance"] = (importance_BT * own_BT).sum().item()
            metrics["importance_cut"] = (cut_BT * own_BT).sum().item()
        if section.turn_share < 1:
            metrics["sure_turns"] = (count_BT * (1 - mask_BT)).sum().item()
        if section.reject_below or section.reject_band or section.reject_drift:
            metrics["rejected"] = (rejected_B.unsqueeze(1) * count_BT).sum().item()
        return loss, metrics

    @property
    def scales_steps(self) -> bool:
        """True if the loss wants a say in each step's learning rate."""
        return hasattr(self.loss, "step_scale")

    def step_scale(self, sums: Mapping[str, float]) -> float:
        """Ask the loss by what to multiply this step's learning rate.

        Args:
            sums: its metrics, over all groups of the step and all ranks.

        Raises: ValueError for an answer that is no factor.
        """
        scale = float(self.loss.step_scale(dict(sums)))
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(
                f"loss {type(self.loss).__name__}: step_scale returned {scale}, expected 0 or more"
            )
        return scale


def reported(sums: Mapping[str, float]) -> Metrics:
    """Leave out the sums that are for `step_scale` alone."""
    return {name: value for name, value in sums.items() if not name.startswith("_")}
