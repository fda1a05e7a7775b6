"""Loss `minpro`: each token weighed by its ratio times the least ratio of the tokens before it.

The right weight of a token is the product of the ratios of its whole prefix, which explodes; the
least of them takes the product's place. The ratio is of new over behaviour probability, so stale
tokens and the engine's arithmetic are in it, and `learner.importance` is not applied.
Source: MinPRO, arXiv 2601.22718. Our reading: the rest is as in `cispo`, with the weight cut at
`most`; nothing before the first token counts as 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from learner.losses import LossBatch
from learner.losses._terms import Found, KlOptions, summed
from pipeline.plugins.ranges import AtLeastOne
from pipeline.plugins.registry import register

if TYPE_CHECKING:
    from torch import Tensor


class MinproOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `minpro` loss."""

    most: AtLeastOne = 2.0
    """Largest weight of a token."""
    prefix_at_most_one: bool = False
    """The least ratio before a token counts as 1 at most: a likelier prefix adds nothing."""


@register("loss", "minpro")
class Minpro:
    """`-sg(min(r m, most)) A log p`, r = new over behaviour, m = the least r before."""

    Options: ClassVar[type[MinproOptions]] = MinproOptions
    own_importance = True

    def __init__(self, options: MinproOptions | None = None) -> None:
        self._options = options or MinproOptions()
        self.silent_without_advantage = type(self).loss is Minpro.loss and not self._options.kl

    def loss(self, batch: LossBatch) -> Found:
        options = self._options
        ratio_BT = (batch.logprobs_BT.detach() - batch.behaviour_BT).exp()
        least_BT = least_before(ratio_BT, batch.mask_BT)
        if options.prefix_at_most_one:
            least_BT = least_BT.clamp(max=1.0)
        weight_BT = ratio_BT * least_BT
        cut_BT = weight_BT.clamp(max=options.most)
        loss_BT = -cut_BT * batch.advantages_BT * batch.logprobs_BT
        cut = cut_BT != weight_BT
        return summed(batch, loss_BT, ratio_BT, options, clipped_BT=cut)


def least_before(ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the least value at the sampled tokens before each one, 1 before the first: (B, T)."""
    known_BT = ratio_BT.where(mask_BT > 0, math.inf).cummin(1).values
    found_BT = ratio_BT.new_ones(ratio_BT.shape)
    found_BT[:, 1:] = known_BT[:, :-1]
    return found_BT.where(found_BT < math.inf, 1.0)
