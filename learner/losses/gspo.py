"""Loss `gspo`: one ratio for a sequence, the geometric mean of its tokens', clipped as a whole.

Each token carries its sequence's ratio, with the gradient of its own logprob (the paper's
GSPO-token, equation 13): equal to GSPO in value and gradient when all tokens of a sequence have
its advantage, and defined for advantages of single tokens.
Source: GSPO, arXiv 2507.18071; mean over sequences (`learner.aggregate: auto`).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from learner.losses import LossBatch
from learner.losses._terms import Found, KlOptions, sequence_mean, summed
from pipeline.plugins.ranges import PositiveFloat
from pipeline.plugins.registry import register


class GspoOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `gspo` loss."""

    clip_low: Annotated[float, Meta(gt=0, lt=1)] = 3e-4
    """Lower clip of a sequence's ratio: 1 - clip_low."""
    clip_high: PositiveFloat = 4e-4
    """Upper clip of a sequence's ratio: 1 + clip_high."""


@register("loss", "gspo")
class Gspo:
    """Clipped surrogate of sequences, `-min(s A, clip(s) A)`, s = exp(mean log ratio)."""

    Options: ClassVar[type[GspoOptions]] = GspoOptions
    aggregate = "sequence"

    def __init__(self, options: GspoOptions | None = None) -> None:
        self._options = options or GspoOptions()
        self.silent_without_advantage = type(self).loss is Gspo.loss and not self._options.kl

    def loss(self, batch: LossBatch) -> Found:
        options, logprobs_BT = self._options, batch.logprobs_BT
        mean_B1 = sequence_mean(logprobs_BT.detach() - batch.old_logprobs_BT, batch)
        ratio_BT = (mean_B1 + logprobs_BT - logprobs_BT.detach()).exp()
        plain_BT = ratio_BT * batch.advantages_BT
        clipped_BT = (
            ratio_BT.clamp(1 - options.clip_low, 1 + options.clip_high) * batch.advantages_BT
        )
        gain_BT = plain_BT.minimum(clipped_BT)
        return summed(batch, -gain_BT, ratio_BT, options, clipped_BT=clipped_BT < plain_BT)
