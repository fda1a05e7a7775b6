"""Budget `reward_variance`: more candidates for prompts whose rewards vary more.

Turns the rewards of ended groups into M' of every prompt, such that the summed variance of the
groups' mean rewards is least: M' follows the deviation of a prompt's rewards, and prompts that are
always right or always wrong get the least. Rewards of any scale.
Source: the allocation of Neyman, 1934 (On the two different aspects of the representative
method), applied to prompts as strata; its estimate of the variance, a moving average, is ours.
"""

from __future__ import annotations

from pipeline.plugins.budgets._by_reward import ByReward, ByRewardOptions
from pipeline.plugins.budgets._rewards import Known
from pipeline.plugins.registry import register


def promise(known: Known) -> float:
    """The variance of the prompt's rewards."""
    return known.variance


@register("budget", "reward_variance")
class RewardVariance(ByReward):
    Options = ByRewardOptions

    def __init__(self, options: ByRewardOptions | None = None) -> None:
        super().__init__(options or ByRewardOptions(), promise)
