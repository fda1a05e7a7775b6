"""Loss `echo`: advantages that follow uncertainty, and a clip that narrows as a response gets sure.

With the policy's entropy H and confidence C at each token, S = z(H) + z(1 - C):

    advantage of a token    A (1 + scale S) + shift S
    clip of a response      clip_least + clip_more sigmoid(4 (1 - mean C of its last tokens))

Source: ECHO, arXiv 2602.02150. Ours: C is exp(-H), one over the perplexity, in place of the mean
probability of the likeliest tokens; z is taken over a group and not over a batch, so that groups
stream, and S has a mean of 0 in each; the values of `scale` and `shift`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from learner.losses import LossBatch
from learner.losses._terms import Found, KlOptions, counts, entropy_of, ratio, rows_by_group, summed
from pipeline.plugins.ranges import NonNegativeFloat, PositiveInt, Share
from pipeline.plugins.registry import register

if TYPE_CHECKING:
    from torch import Tensor

_SLOPE = 4.0  # of the clip's sigmoid
_ALIKE = 1e-6  # deviation, nats, below which values differ by rounding alone


class EchoOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `echo` loss."""

    scale: NonNegativeFloat = 0.1
    """How much more a token counts for each deviation that it is more uncertain."""
    shift: NonNegativeFloat = 0.01
    """What each such deviation adds to a token's advantage, whatever that is."""
    clip_least: Share = 0.05
    """Clip of the ratio, before what uncertainty adds."""
    clip_more: Share = 0.15
    """What uncertainty adds to the clip: half of it at a confidence of 1, never all."""
    tail: PositiveInt = 8
    """Last tokens of a response, whose mean confidence sets its clip."""


@register("loss", "echo")
class Echo:
    """Clipped surrogate whose advantages and clip follow the policy's uncertainty."""

    Options: ClassVar[type[EchoOptions]] = EchoOptions
    whole_groups = True
    needs_entropy = True

    def __init__(self, options: EchoOptions | None = None) -> None:
        self._options = options or EchoOptions()

    def loss(self, batch: LossBatch) -> Found:
        options, ratio_BT = self._options, ratio(batch)
        uncertainty_BT = uncertainties(batch)
        advantages_BT = (
            batch.advantages_BT * (1 + options.scale * uncertainty_BT)
            + options.shift * uncertainty_BT
        )
        clip_B1 = self.clips(tail_confidences(batch, options.tail)).unsqueeze(1)
        plain_BT = ratio_BT * advantages_BT
        gain_BT = plain_BT.minimum(ratio_BT.clamp(1 - clip_B1, 1 + clip_B1) * advantages_BT)
        loss, metrics = summed(batch, -gain_BT, ratio_BT, options, clipped_BT=gain_BT < plain_BT)
        return loss, {**metrics, "clip": (clip_B1 * counts(batch)).sum().item()}

    def clips(self, tail_B: Tensor) -> Tensor:
        """Compute each response's clip from the confidence of its tail: shape (B,)."""
        options = self._options
        return options.clip_least + options.clip_more * (_SLOPE * (1 - tail_B)).sigmoid()


def uncertainties(batch: LossBatch) -> Tensor:
    """Compute z(H) + z(1 - C) over the sampled tokens of each group, 0 elsewhere: shape (B, T)."""
    entropy_BT = entropy_of(batch)
    found_BT = entropy_BT.new_zeros(entropy_BT.shape)
    for _, rows_B in rows_by_group(batch):
        held_BT = (batch.mask_BT > 0) & rows_B.unsqueeze(1)
        entropy_N = entropy_BT[held_BT]
        found_BT[held_BT] = whitened(entropy_N) + whitened(1 - (-entropy_N).exp())
    return found_BT


def whitened(values_N: Tensor) -> Tensor:
    """Subtract the mean and divide by the deviation; zeros where all values are alike."""
    deviation = values_N.std(correction=0)
    return (values_N - values_N.mean()) / deviation if deviation > _ALIKE else values_N * 0


def tail_confidences(batch: LossBatch, tail: int) -> Tensor:
    """Average the confidence over the last `tail` sampled tokens of each response: shape (B,)."""
    to_come_BT = batch.mask_BT.flip(1).cumsum(1).flip(1)  # sampled tokens from here on
    last_BT = batch.mask_BT * (to_come_BT <= tail)
    return ((-entropy_of(batch)).exp() * last_BT).sum(1) / last_BT.sum(1).clamp(min=1)
