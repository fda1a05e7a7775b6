"""Loss `clip_cov`: `dapo`'s, without a few tokens whose training would cost the most entropy.

Among the tokens whose covariance of logprob and advantage lies in a band, a few at random are
left out of the gradient.
Source: Clip-Cov, arXiv 2505.22617, equations 11 and 12, and verl's `clip_cov`; what is ours:
`learner.losses._covariance`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from learner.losses import LossBatch
from learner.losses._covariance import covariances, rng_of, some_of
from learner.losses._terms import Found, KlOptions, counts, ratio, summed
from pipeline.plugins.ranges import NonNegativeFloat, PositiveFloat, Share
from pipeline.plugins.registry import register


class ClipCovOptions(KlOptions, frozen=True, kw_only=True):
    """Options of the `clip_cov` loss."""

    clip_low: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    """Lower clip of the ratio of new over old probability: 1 - clip_low."""
    clip_high: PositiveFloat = 0.2
    """Upper clip of the ratio: 1 + clip_high."""
    share: Share = 2e-4
    """Share of a group's tokens that is left out."""
    low: NonNegativeFloat = 1.0
    """Covariance above which a token may be left out."""
    high: PositiveFloat = 5.0
    """Covariance below which a token may be left out."""


@register("loss", "clip_cov")
class ClipCov:
    """Clipped surrogate without a few tokens of high covariance."""

    Options: ClassVar[type[ClipCovOptions]] = ClipCovOptions
    whole_groups = True

    def __init__(self, options: ClipCovOptions | None = None) -> None:
        self._options = options or ClipCovOptions()

    def loss(self, batch: LossBatch) -> Found:
        options, ratio_BT = self._options, ratio(batch)
        plain_BT = ratio_BT * batch.advantages_BT
        gain_BT = plain_BT.minimum(
            ratio_BT.clamp(1 - options.clip_low, 1 + options.clip_high) * batch.advantages_BT
        )
        clipped_BT = gain_BT < plain_BT
        kept_BT = ratio_BT.new_ones(ratio_BT.shape)
        for group, places_N, covariance_N in covariances(batch):
            rng = rng_of("clip_cov", group)
            fits_N = (covariance_N > options.low) & (covariance_N < options.high)
            fits_N = fits_N & ~clipped_BT.flatten()[places_N]
            able = places_N[fits_N].tolist()
            count = min(len(able), some_of(len(places_N), options.share, rng))
            for place in rng.sample(able, count):
                kept_BT.view(-1)[place] = 0.0
        loss, metrics = summed(batch, -gain_BT * kept_BT, ratio_BT, options, clipped_BT=clipped_BT)
        return loss, {**metrics, "left_out": ((1 - kept_BT) * counts(batch)).sum().item()}
