"""Loss `decoupled_ppo`: staleness clipped against a proximal policy, and weighed by its own ratio.

`-(p/b) min(u A, clip(u) A)` with u = new/p: p is the proximal policy, b what sampled the token.
p is the learner's policy of the version that sampled it (or that the batch began with), whose
logprobs are computed before that version ends: exact, where other systems have lost them.
`dapo` with `learner.importance` is the same with p/b cut; here tokens with p/b above a cap are
left out, as AReaL's program does, and `learner.importance` is not applied.
With `proximal: reference` p is the reference model instead: with `learner.reference: average` the
moving average of PPO-EWMA, which needs no logprob of a version that has ended.
Source: AReaL, arXiv 2505.24298, equation 5; PPO-EWMA, arXiv 2110.00641 and 2605.12070.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from learner.losses import LossBatch
from learner.losses._terms import Found, KlOptions, counts, ratio, summed
from pipeline.plugins.ranges import AtLeastOne, PositiveFloat
from pipeline.plugins.registry import register


class DecoupledPpoOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `decoupled_ppo` loss."""

    clip_low: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    """Lower clip of new over proximal probability: 1 - clip_low."""
    clip_high: PositiveFloat = 0.2
    """Upper clip of new over proximal probability: 1 + clip_high."""
    proximal: Literal["old", "reference"] = "old"
    """Proximal policy: the learner's of the version that sampled a token (`old`), or the
    `reference` model (PPO-EWMA: `learner.reference: average`)."""
    behaviour_cap: AtLeastOne = 5.0
    """Proximal over behaviour probability above which a token is left out."""


@register("loss", "decoupled_ppo")
class DecoupledPpo:
    """Clipped surrogate against a proximal policy, weighed by proximal over behaviour."""

    Options: ClassVar[type[DecoupledPpoOptions]] = DecoupledPpoOptions
    own_importance = True

    def __init__(self, options: DecoupledPpoOptions | None = None) -> None:
        self._options = options or DecoupledPpoOptions()
        self.silent_without_advantage = (
            type(self).loss is DecoupledPpo.loss and not self._options.kl
        )

    def loss(self, batch: LossBatch) -> Found:
        options = self._options
        if options.proximal == "reference":
            assert batch.reference_BT is not None  # checked with the configuration
            batch = dataclasses.replace(batch, old_logprobs_BT=batch.reference_BT)
        ratio_BT = ratio(batch)
        weight_BT = (batch.old_logprobs_BT - batch.behaviour_BT).exp()
        kept_BT = weight_BT <= options.behaviour_cap
        plain_BT = ratio_BT * batch.advantages_BT
        clipped_BT = (
            ratio_BT.clamp(1 - options.clip_low, 1 + options.clip_high) * batch.advantages_BT
        )
        # where, not a product: a weight outside may be infinite
        loss_BT = -plain_BT.minimum(clipped_BT) * weight_BT.where(kept_BT, 0.0)
        loss, metrics = summed(
            batch,
            loss_BT,
            ratio_BT,
            options,
            clipped_BT=clipped_BT < plain_BT,
        )
        return loss, {**metrics, "left_out": (~kept_BT * counts(batch)).sum().item()}
