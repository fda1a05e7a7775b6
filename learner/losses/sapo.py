"""Loss `sapo`: a smooth gate in place of the clip, so that gradients fade and never stop.

The gate f(r) = 4/tau sigmoid(tau (r - 1)) has slope 1 at r = 1 and falls off on both sides; a
larger tau for negative advantages makes it narrower there.
Source: SAPO, arXiv 2511.20347; mean over sequences (`learner.aggregate: auto`).
"""

from __future__ import annotations

from typing import ClassVar

from learner.losses import LossBatch
from learner.losses._terms import Found, KlOptions, ratio, summed
from pipeline.plugins.ranges import PositiveFloat
from pipeline.plugins.registry import register


class SapoOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `sapo` loss."""

    tau_positive: PositiveFloat = 1.0
    """Steepness of the gate for tokens of positive advantage."""
    tau_negative: PositiveFloat = 1.05
    """Steepness of the gate for the other tokens."""


@register("loss", "sapo")
class Sapo:
    """Soft adaptive gate, `-4/tau sigmoid(tau (ratio - 1)) A`."""

    Options: ClassVar[type[SapoOptions]] = SapoOptions
    aggregate = "sequence"

    def __init__(self, options: SapoOptions | None = None) -> None:
        self._options = options or SapoOptions()
        self.silent_without_advantage = type(self).loss is Sapo.loss and not self._options.kl

    def loss(self, batch: LossBatch) -> Found:
        options, ratio_BT = self._options, ratio(batch)
        positive_BT = ratio_BT.new_full(ratio_BT.shape, options.tau_positive)
        tau_BT = positive_BT.where(batch.advantages_BT > 0, options.tau_negative)
        gate_BT = (tau_BT * (ratio_BT - 1)).sigmoid() * 4 / tau_BT
        return summed(batch, -gate_BT * batch.advantages_BT, ratio_BT, options)
