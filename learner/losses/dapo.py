"""Loss `dapo`: the clipped policy gradient with a wider upper bound, summed over tokens.

With one optimizer step per batch the ratio is 1 and nothing is clipped. The overlong
penalty of the same paper shapes the reward, so it is not here. With `learner.aggregate`
`sequence` it is GRPO's loss, with `constant` Dr. GRPO's.
Source: DAPO, arXiv 2503.14476; importance weights and KL as in METHODS of the docs; the
second clip of dual-clip PPO, arXiv 1912.09729; the mask of mastered tokens of UloRL,
arXiv 2507.19766, exact but for its divisor: masked tokens still count in the mean (ours).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from learner.losses import LossBatch
from learner.losses._terms import (
    Found,
    KlOptions,
    counts,
    entropy_of,
    ratio,
    sequence_mean,
    summed,
)
from pipeline.plugins.ranges import NonNegativeFloat, PositiveFloat, Share, zero_or
from pipeline.plugins.registry import register

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 1e-6
"""Of a float32 logprob, so that a probability of exactly `mastered_tau` is mastered."""


class DapoOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `dapo` loss."""

    clip_low: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    """Lower clip of the ratio of new over old probability: 1 - clip_low."""
    clip_high: PositiveFloat = 0.28
    """Upper clip of the ratio: 1 + clip_high."""
    dual_clip: Annotated[float, zero_or(1)] = 0.0
    """Largest ratio with which a token of negative advantage counts (dual-clip PPO: 3); 0: any."""
    mastered_tau: Share = 0.0
    """Probability from which on a token of a response with reward 1 is mastered and not trained on,
    while the response's mean entropy is below `mastered_entropy` (UloRL: 0.99). 0: off."""
    mastered_entropy: NonNegativeFloat = 0.2
    """Mean entropy of a response, nats, from which on all its tokens are trained on."""


@register("loss", "dapo")
class Dapo:
    """Token-level clipped surrogate, `-min(ratio A, clip(ratio) A)`, and `kl` times KL."""

    Options: ClassVar[type[DapoOptions]] = DapoOptions

    def __init__(self, options: DapoOptions | None = None) -> None:
        self._options = options or DapoOptions()
        self.needs_entropy = bool(self._options.mastered_tau)
        # A subclass may add a term of its own.
        self.silent_without_advantage = type(self).loss is Dapo.loss and not self._options.kl

    def loss(self, batch: LossBatch) -> Found:
        options = self._options
        ratio_BT, advantages_BT = ratio(batch), batch.advantages_BT
        plain_BT = ratio_BT * advantages_BT
        gain_BT = plain_BT.minimum(
            ratio_BT.clamp(1 - options.clip_low, 1 + options.clip_high) * advantages_BT
        )
        clipped_BT = gain_BT < plain_BT
        if options.dual_clip:
            least_BT = (options.dual_clip * advantages_BT).where(advantages_BT < 0, gain_BT)
            clipped_BT = clipped_BT | (gain_BT < least_BT)
            gain_BT = gain_BT.maximum(least_BT)
        if not options.mastered_tau:
            return summed(batch, -gain_BT, ratio_BT, options, clipped_BT=clipped_BT)
        mastered_BT = self._mastered(batch)
        gain_BT = gain_BT.where(~mastered_BT, 0.0)
        loss, metrics = summed(batch, -gain_BT, ratio_BT, options, clipped_BT=clipped_BT)
        return loss, {**metrics, "mastered": (mastered_BT * counts(batch)).sum().item()}

    def _mastered(self, batch: LossBatch) -> Tensor:
        """Return True at tokens that need no more training: shape (B, T)."""
        options = self._options
        sure_B1 = sequence_mean(entropy_of(batch), batch) < options.mastered_entropy
        right_B1 = batch.rewards_B.unsqueeze(1) >= 1
        likely_BT = batch.old_logprobs_BT.exp() >= options.mastered_tau - _ROUNDING
        return sure_B1 & right_B1 & likely_BT & (batch.mask_BT > 0)
