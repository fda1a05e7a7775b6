"""Loss `gmpo`: the geometric mean of a sequence's clipped ratios, times its advantage.

Clipped in the exponent, [exp(-clip), exp(clip)], wider than the arithmetic mean would bear; at
each token the clip acts on the side that its advantage could exploit.
Source: GMPO, arXiv 2507.20673, and verl's `geo_mean`. Advantages of single tokens are averaged
over the sequence, as verl does. Mean over sequences (`learner.aggregate: auto`).
"""

from __future__ import annotations

from typing import ClassVar

from learner.losses import LossBatch
from learner.losses._terms import Found, KlOptions, sequence_mean, summed
from pipeline.plugins.ranges import PositiveFloat
from pipeline.plugins.registry import register


class GmpoOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `gmpo` loss."""

    clip_low: PositiveFloat = 0.4
    """Lower clip of a token's log ratio: -clip_low."""
    clip_high: PositiveFloat = 0.4
    """Upper clip of a token's log ratio."""


@register("loss", "gmpo")
class Gmpo:
    """Geometric mean of the clipped ratios of a sequence, `-A exp(mean of clipped log ratios)`."""

    Options: ClassVar[type[GmpoOptions]] = GmpoOptions
    aggregate = "sequence"

    def __init__(self, options: GmpoOptions | None = None) -> None:
        self._options = options or GmpoOptions()
        self.silent_without_advantage = type(self).loss is Gmpo.loss and not self._options.kl

    def loss(self, batch: LossBatch) -> Found:
        options = self._options
        log_BT = batch.logprobs_BT - batch.old_logprobs_BT
        sign_BT = batch.advantages_BT.sign()
        plain_BT = sign_BT * log_BT
        cut_BT = plain_BT.minimum(sign_BT * log_BT.clamp(-options.clip_low, options.clip_high))
        ratio_B1 = sequence_mean(sign_BT * cut_BT, batch).exp()
        loss_B1 = -sequence_mean(batch.advantages_BT, batch) * ratio_B1
        return summed(
            batch,
            loss_B1.expand_as(log_BT),
            ratio_B1.expand_as(log_BT),
            options,
            clipped_BT=cut_BT < plain_BT,
        )
