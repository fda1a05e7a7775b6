"""Budget `duet`: candidates go where success is neither certain nor out of reach.

Turns each prompt's success rate p into M': one candidate at a time to the prompt of the largest
gain u / (n (n + 1)), u = p (1 - p), ties in order. A prompt never sampled has the rate of those of
like length. Its selector is `duet` too, which stops long candidates by chance.
Source: DUET, arXiv 2605.08441, in our reading: the forecast of a prompt's worth is published, the
formula and the solver (that of `length_variance`) are ours. For rewards of 0 and 1.
"""

from __future__ import annotations

from pipeline.plugins.budgets._by_reward import ByReward, ByRewardOptions
from pipeline.plugins.budgets._rewards import Known
from pipeline.plugins.registry import register


def promise(known: Known) -> float:
    """The variance of one answer: p (1 - p)."""
    rate = min(max(known.mean, 0.0), 1.0)
    return rate * (1 - rate)


@register("budget", "duet")
class Duet(ByReward):
    Options = ByRewardOptions

    def __init__(self, options: ByRewardOptions | None = None) -> None:
        super().__init__(options or ByRewardOptions(), promise)
