"""Loss `vcpo`: the policy gradient weighed by whole sequences' ratios, at a rate that these allow.

The weight of a sequence is the product of its tokens' new over behaviour probability, cut at
`most` in the gradient. Uncut they give the effective sample size, ESS = (sum w)^2 / sum w^2, of
the update over all ranks; its learning rate is multiplied by sqrt(min(1, ESS / (B rho_0))).
No clip, and `learner.importance` is not applied.
Source: VCPO, arXiv 2602.17616, and the authors' code. Its baseline of least variance (OPOB) is an
advantage rule, not part of the loss; it needs the norm of each response's gradient.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from learner.losses import LossBatch
from learner.losses._terms import Found, KlOptions, summed
from pipeline.plugins.ranges import AtLeastOne, PositiveShare
from pipeline.plugins.registry import register

_LARGEST_LOG = 300.0
"""Log ratios above it count as it: its square and sums of that are finite in float64."""


class VcpoOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `vcpo` loss."""

    most: AtLeastOne = 8.0
    """Largest weight of a sequence in the gradient."""
    target: PositiveShare = 1.0
    """Effective share of the update's sequences at which the learning rate is whole (rho_0)."""
    scaling: Literal["sqrt", "linear", "off"] = "sqrt"
    """How the learning rate falls with that share below `target`: with its root, `linear`, or
    not at all."""


@register("loss", "vcpo")
class Vcpo:
    """`-sg(min(w, most)) A log p`, w = a sequence's ratio, and steps scaled by the ESS of w."""

    Options: ClassVar[type[VcpoOptions]] = VcpoOptions
    own_importance = True

    def __init__(self, options: VcpoOptions | None = None) -> None:
        self._options = options or VcpoOptions()

    def loss(self, batch: LossBatch) -> Found:
        log_BT = (batch.logprobs_BT.detach() - batch.behaviour_BT) * batch.mask_BT
        log_B1 = log_BT.double().sum(1, keepdim=True).clamp(max=_LARGEST_LOG)
        weight_B1 = log_B1.exp()
        kept_B1 = weight_B1.clamp(max=self._options.most)
        loss_BT = -kept_B1.to(log_BT.dtype) * batch.advantages_BT * batch.logprobs_BT
        loss, metrics = summed(
            batch,
            loss_BT,
            log_BT.exp(),
            self._options,
            clipped_BT=(kept_B1 != weight_B1).expand_as(log_BT),
        )
        sums = {
            "_weight": weight_B1.sum().item(),
            "_weight_squared": weight_B1.square().sum().item(),
            "_sequences": float(len(weight_B1)),
        }
        return loss, {**metrics, **sums}

    def step_scale(self, sums: dict[str, float]) -> float:
        """Return the factor of this update's learning rate."""
        if self._options.scaling == "off" or not sums.get("_weight_squared"):
            return 1.0
        effective = sums["_weight"] ** 2 / sums["_weight_squared"] / sums["_sequences"]
        share = min(1.0, effective / self._options.target)
        return share if self._options.scaling == "linear" else math.sqrt(share)
