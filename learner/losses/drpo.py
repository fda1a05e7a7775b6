"""Loss `drpo`: right answers raised, short ones more, against the likeliest of the wrong ones.

With s = a response's mean token logprob, of each group with right and wrong answers

    J = sum_right w_i s_i - tau log mean_wrong exp(s_j / tau)
    w_i ~ exp((1 - length_i / limit) / lambda), which sum to 1

so length re-weighs right answers among themselves and makes none of them negative. The loss is
-J + beta max(0, KL - delta) KL, the first factor of it without gradient, KL the mean of old minus
new logprob. A group of one kind has J = 0 and counts in the mean over groups.
Source: DRPO, arXiv 2510.04474, exact: the weights of the wrong answers depend on the scores now,
so a group is one micro-batch, whatever its size. Ours: KL and its hinge are those of the group,
the paper's of the whole batch, which would be known too late. Advantages are not used.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from learner.losses import LossBatch
from learner.losses._terms import counts, rows_by_group, sequence_mean
from pipeline.plugins import interfaces
from pipeline.plugins.ranges import NonNegativeFloat, PositiveFloat
from pipeline.plugins.registry import register

if TYPE_CHECKING:
    from torch import Tensor


class DrpoOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `drpo` loss."""

    length_scale: PositiveFloat = 0.1
    """How strongly short right answers are preferred, the smaller the more (lambda); lengths are
    shares of `sampling.max_tokens`. A large one is DisCO's loss, without length."""
    tau: PositiveFloat = 10.0
    """Temperature of the maximum over wrong answers."""
    kl_limit: NonNegativeFloat = 1e-4
    """Divergence from the old policy that is free, nats a token (delta)."""
    kl_weight: NonNegativeFloat = 1e3
    """Weight of the divergence above that (beta)."""
    correct: PositiveFloat = 1.0
    """Reward from which on an answer is right."""


@register("loss", "drpo")
class Drpo:
    """Decoupled reward policy optimization: scores of right answers against those of wrong ones."""

    Options: ClassVar[type[DrpoOptions]] = DrpoOptions
    aggregate = "group"
    whole_groups = True
    own_importance = True

    def __init__(self, options: DrpoOptions | None = None) -> None:
        self._options = options or DrpoOptions()

    def loss(self, batch: LossBatch) -> tuple[Tensor, dict[str, float]]:
        options, count_BT = self._options, counts(batch)
        score_B = sequence_mean(batch.logprobs_BT, batch).squeeze(1)
        right_B = batch.rewards_B >= options.correct
        drift_BT = (batch.old_logprobs_BT - batch.logprobs_BT) * batch.mask_BT
        loss = batch.logprobs_BT.new_zeros(())
        metrics = {"gain": 0.0, "drift": 0.0}
        for _, rows_B in rows_by_group(batch):
            weight = count_BT[rows_B].sum()
            drift = drift_BT[rows_B].sum() / batch.lengths_B[rows_B].sum().clamp(min=1)
            beyond = (drift.detach() - options.kl_limit).clamp(min=0)
            gain = self._gain(
                score_B[rows_B], right_B[rows_B], batch.lengths_B[rows_B], batch.max_tokens
            )
            loss = loss + weight * (options.kl_weight * beyond * drift - gain)
            metrics["gain"] += (weight * gain).item()
            metrics["drift"] += (weight * drift).item()
        return loss, {"loss": loss.item(), **metrics}

    def _gain(self, score_M: Tensor, right_M: Tensor, length_M: Tensor, limit: int) -> Tensor:
        """Compute J of one group of M members."""
        options = self._options
        right, wrong = score_M[right_M], score_M[~right_M]
        if not len(right) or not len(wrong):
            return score_M.sum() * 0.0
        spared = 1 - length_M[right_M] / max(1, limit)
        weight = (spared / options.length_scale).softmax(0)
        worst = (wrong / options.tau).logsumexp(0) - math.log(len(wrong))
        return (weight * right).sum() - options.tau * worst
