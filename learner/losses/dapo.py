"""Loss `dapo`: the clipped policy gradient with a wider upper bound, summed over tokens.

With one optimizer step per batch the ratio is 1 and nothing is clipped. The overlong
penalty of the same paper shapes the reward, so it is not here.
Source: DAPO, arXiv 2503.14476; importance weights and KL as in METHODS of the docs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from msgspec import Meta

from learner.losses import LossBatch
from pipeline.plugins import interfaces
from pipeline.plugins.ranges import NonNegativeFloat, PositiveFloat
from pipeline.plugins.registry import register

if TYPE_CHECKING:
    from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


class DapoOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `dapo` loss."""

    clip_low: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    """Lower clip of the ratio of new over old probability: 1 - clip_low."""
    clip_high: PositiveFloat = 0.28
    """Upper clip of the ratio: 1 + clip_high."""
    kl: NonNegativeFloat = 0.0
    """Coefficient of the divergence from `learner.reference` in each token's loss; 0: off."""
    kl_estimator: Estimator = "k3"
    """Estimator of the divergence. With d = reference minus own logprob: k1 is -d (its gradient
    is 0 on average), k2 is d * d / 2, k3 is exp(d) - d - 1."""


@register("loss", "dapo")
class Dapo:
    """Token-level clipped surrogate, `-min(ratio A, clip(ratio) A)`, and `kl` times KL."""

    Options: ClassVar[type[DapoOptions]] = DapoOptions

    def __init__(self, options: DapoOptions | None = None) -> None:
        self._options = options or DapoOptions()
        # A subclass may add a term of its own.
        self.silent_without_advantage = type(self).loss is Dapo.loss and not self._options.kl

    def loss(self, batch: LossBatch) -> tuple[Tensor, dict[str, float]]:
        low, high = 1 - self._options.clip_low, 1 + self._options.clip_high
        advantages_BT = batch.advantages_BT
        ratio_BT = (batch.logprobs_BT - batch.old_logprobs_BT).exp()
        plain_BT = ratio_BT * advantages_BT
        clipped_BT = ratio_BT.clamp(low, high) * advantages_BT
        count_BT = batch.mask_BT * batch.weights_B.unsqueeze(1)
        loss = -(plain_BT.minimum(clipped_BT) * batch.importance_BT * count_BT).sum()
        gap_BT = (batch.old_logprobs_BT - batch.behaviour_BT).abs() * batch.mask_BT
        metrics = {
            "ratio": (ratio_BT.detach() * count_BT).sum().item(),
            "clipped": ((clipped_BT < plain_BT).float() * count_BT).sum().item(),
            "mismatch": (gap_BT * count_BT).sum().item(),
            "mismatch_max": gap_BT.max().item(),
        }
        if batch.reference_BT is not None:
            kl_BT = divergence(batch.logprobs_BT, batch.reference_BT, self._options.kl_estimator)
            kl = (kl_BT * count_BT).sum()
            metrics["kl"] = kl.item()
            if self._options.kl:
                loss = loss + self._options.kl * kl
        return loss, {"loss": loss.item(), **metrics}


def divergence(logprobs_BT: Tensor, reference_BT: Tensor, estimator: Estimator) -> Tensor:
    """Estimate KL(policy || reference) at each sampled token, nats: shape (B, T)."""
    d_BT = reference_BT - logprobs_BT
    match estimator:
        case "k1":
            return -d_BT
        case "k2":
            return d_BT.square() / 2
        case "k3":
            return d_BT.exp() - d_BT - 1
