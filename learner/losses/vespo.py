"""Loss `vespo`: whole sequences weighed by a smooth gate of their ratio, narrow for bad ones.

The gate phi(w) = e^lambda w^k e^(-lambda w) is 1 at w = 1 and falls off on both sides; w is the
product of the tokens' new over behaviour probability. `learner.importance` is not applied: the
engine's share of the ratio is in w.
Source: VESPO, arXiv 2602.10693, with the defaults and bounds of TRL's `vespo`.
"""

from __future__ import annotations

import math
from typing import ClassVar

from learner.losses import LossBatch
from learner.losses._terms import Found, KlOptions, summed
from pipeline.plugins.ranges import PositiveFloat
from pipeline.plugins.registry import register

_TOKEN_LOG = 20.0
"""Bound of a token's log ratio, and upper bound of a sequence's."""
_LEAST_LOG = math.log(1e-8)
"""Lower bound of a sequence's log ratio."""


class VespoOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `vespo` loss."""

    power_positive: PositiveFloat = 2.0
    """k of the gate for sequences of advantage 0 or more: how it rises below w = 1."""
    decay_positive: PositiveFloat = 3.0
    """lambda of the gate for these: how it falls above w = 1."""
    power_negative: PositiveFloat = 3.0
    """k of the gate for sequences of negative advantage."""
    decay_negative: PositiveFloat = 2.0
    """lambda of the gate for these."""


@register("loss", "vespo")
class Vespo:
    """`-sg(phi(w)) A log p`, phi a gate around 1, w a sequence's ratio."""

    Options: ClassVar[type[VespoOptions]] = VespoOptions
    own_importance = True

    def __init__(self, options: VespoOptions | None = None) -> None:
        self._options = options or VespoOptions()
        self.silent_without_advantage = type(self).loss is Vespo.loss and not self._options.kl

    def loss(self, batch: LossBatch) -> Found:
        options = self._options
        log_BT = (batch.logprobs_BT.detach() - batch.behaviour_BT).clamp(-_TOKEN_LOG, _TOKEN_LOG)
        log_B1 = (log_BT * batch.mask_BT).sum(1, keepdim=True).clamp(_LEAST_LOG, _TOKEN_LOG)
        good_BT, ones_BT = batch.advantages_BT >= 0, log_BT.new_ones(log_BT.shape)
        power_BT = (options.power_positive * ones_BT).where(good_BT, options.power_negative)
        decay_BT = (options.decay_positive * ones_BT).where(good_BT, options.decay_negative)
        gate_BT = (decay_BT + power_BT * log_B1 - decay_BT * log_B1.exp()).exp()
        loss_BT = -gate_BT * batch.advantages_BT * batch.logprobs_BT
        return summed(batch, loss_BT, gate_BT, options)
