"""Advantage `opob`: a member's reward less the off-policy baseline of least variance.

b = sum(w^2 g^2 r) / sum(w^2 g^2), where w is a member's importance weight and g the norm of its
gradient. VCPO measures g with one backward pass for each response; here g^2 is its number of
tokens (ours, the cheap form), and w is the loss weight that `Finalize` gave, as of a selector that
prunes by chance. The ratio of policies is not in w: it is known only in the learner, later. With
all weights 1 this is `opo`.
Source: OPOB, VCPO, arXiv 2602.17616.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import ShapingOptions, shape, weighted_mean
from pipeline.plugins.registry import register
from pipeline.plugins.views import Outcome


class OpobOptions(ShapingOptions, frozen=True, kw_only=True):
    """Options of the `opob` advantage."""


@register("advantage", "opob")
class Opob:
    Options = OpobOptions

    def __init__(self, options: OpobOptions | None = None) -> None:
        self._options = options or OpobOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        shaped = shape(members, self._options)
        if isinstance(shaped, NoSignal):
            return shaped
        baseline = weighted_mean(shaped.rewards, shaped.weights**2 * shaped.lengths)
        return shaped.advantages(shaped.rewards - baseline, why=f"baseline {baseline:.4g}")
