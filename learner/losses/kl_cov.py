"""Loss `kl_cov`: no clip, but the few tokens of highest covariance are held near the old policy.

Those tokens, whose training would cost the most entropy, also pay `weight` times the distance of
their log ratio from 0. With one update a batch and no stale tokens the ratio is 1, and nothing is
paid: it needs `learner.updates` or `epochs` above 1, or `learner.max_staleness`.
Source: KL-Cov, arXiv 2505.22617, equations 13 and 14, and verl's `kl_cov`; what is ours:
`learner.losses._covariance`.
"""

from __future__ import annotations

from typing import ClassVar

from learner.losses import LossBatch
from learner.losses._covariance import covariances, rng_of, some_of
from learner.losses._terms import Found, KlOptions, counts, ratio, summed
from pipeline.plugins.ranges import NonNegativeFloat, Share
from pipeline.plugins.registry import register


class KlCovOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `kl_cov` loss."""

    share: Share = 2e-4
    """Share of a group's tokens that is held near the old policy."""
    weight: NonNegativeFloat = 1.0
    """Weight of the distance of their log ratio from 0."""


@register("loss", "kl_cov")
class KlCov:
    """Surrogate without a clip; tokens of the highest covariance are held near the old policy."""

    Options: ClassVar[type[KlCovOptions]] = KlCovOptions
    whole_groups = True

    def __init__(self, options: KlCovOptions | None = None) -> None:
        self._options = options or KlCovOptions()

    def loss(self, batch: LossBatch) -> Found:
        options, ratio_BT = self._options, ratio(batch)
        held_BT = ratio_BT.new_zeros(ratio_BT.shape)
        for group, places_N, covariance_N in covariances(batch):
            count = some_of(len(places_N), options.share, rng_of("kl_cov", group))
            highest = covariance_N.topk(min(count, len(places_N))).indices
            held_BT.view(-1)[places_N[highest]] = 1.0
        distance_BT = (batch.logprobs_BT - batch.old_logprobs_BT).abs()
        loss_BT = options.weight * distance_BT * held_BT - ratio_BT * batch.advantages_BT
        loss, metrics = summed(batch, loss_BT, ratio_BT, options)
        return loss, {**metrics, "held": (held_BT * counts(batch)).sum().item()}
