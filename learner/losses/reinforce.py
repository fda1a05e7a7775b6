"""Loss `reinforce`: the plain policy gradient, -A log p, without a ratio and without a clip.

The recipes RLOO (arXiv 2402.14740), GPG (arXiv 2504.02546) and OPO (arXiv 2505.23585) are an
advantage rule with this loss. It corrects nothing: with several updates a batch, or stale tokens,
use one with a ratio, or `learner.importance`.
Source: REINFORCE, Williams 1992.
"""

from __future__ import annotations

from typing import ClassVar

from learner.losses import LossBatch
from learner.losses._terms import Found, KlOptions, ratio, summed
from pipeline.plugins.registry import register


class ReinforceOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `reinforce` loss."""


@register("loss", "reinforce")
class Reinforce:
    """Plain policy gradient, `-A log p`."""

    Options: ClassVar[type[ReinforceOptions]] = ReinforceOptions

    def __init__(self, options: ReinforceOptions | None = None) -> None:
        self._options = options or ReinforceOptions()
        self.silent_without_advantage = type(self).loss is Reinforce.loss and not self._options.kl

    def loss(self, batch: LossBatch) -> Found:
        loss_BT = -batch.advantages_BT * batch.logprobs_BT
        return summed(batch, loss_BT, ratio(batch), self._options)
