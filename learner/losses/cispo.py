"""Loss `cispo`: the plain policy gradient, each token weighed by its ratio, which is cut.

No token's gradient is lost to a clip: the cut ratio is a number, the gradient is that of the
logprob.
Source: CISPO in MiniMax-M1, arXiv 2506.13585, equation 4; no lower cut, as there. The upper one
is not given there: 5 is what ScaleRL (arXiv 2510.13786) and TRL use.
"""

from __future__ import annotations

from typing import ClassVar

from learner.losses import LossBatch
from learner.losses._terms import Found, KlOptions, ratio, summed
from pipeline.plugins.ranges import AtLeastOne, Share
from pipeline.plugins.registry import register


class CispoOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `cispo` loss."""

    least: Share = 0.0
    """Least ratio of new over old probability with which a token counts."""
    most: AtLeastOne = 5.0
    """Largest ratio with which a token counts."""


@register("loss", "cispo")
class Cispo:
    """`-sg(clip(ratio)) A log p`, sg = without gradient."""

    Options: ClassVar[type[CispoOptions]] = CispoOptions

    def __init__(self, options: CispoOptions | None = None) -> None:
        self._options = options or CispoOptions()
        self.silent_without_advantage = type(self).loss is Cispo.loss and not self._options.kl

    def loss(self, batch: LossBatch) -> Found:
        options, ratio_BT = self._options, ratio(batch).detach()
        cut_BT = ratio_BT.clamp(options.least, options.most)
        loss_BT = -cut_BT * batch.advantages_BT * batch.logprobs_BT
        return summed(batch, loss_BT, ratio_BT, options, clipped_BT=cut_BT != ratio_BT)
