"""What the advantages share: rewards with the overlong penalty, and groups without a signal.

Turns the members of a group into arrays that a baseline can be taken from. Equality of rewards
is judged without the penalty, as DAPO judges by correctness.
Source: overlong penalty and dropping, DAPO, arXiv 2503.14476, equation 13 and section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.plugins import interfaces
from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.ranges import NonNegativeInt, PositiveFloat
from pipeline.plugins.views import Outcome

Array = npt.NDArray[np.float64]

EPSILON = 1e-6  # verl's and TRL's order of magnitude; only guards a division


class ShapingOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options that most advantages have."""

    drop_equal: bool = False
    """Drop a group whose rewards are all equal, and ask another prompt in its place (DAPO);
    else it is trained on with advantage 0, and its tokens count in the step's mean."""
    overlong_tokens: NonNegativeInt = 0
    """Last tokens before the limit in which the reward falls linearly by up to 1; 0: off."""


class GroupMeanOptions(ShapingOptions, frozen=True, kw_only=True):
    """Options of the advantages that take the mean of the group off, as `grpo` does."""

    divide_by_deviation: bool = False
    """Divide by the group's standard deviation (of the sample, n - 1), as in the first GRPO."""


class CorrectOptions(GroupMeanOptions, frozen=True, kw_only=True):
    """Options of the advantages that treat right answers apart."""

    correct: PositiveFloat = 1.0
    """Reward from which on an answer counts as right."""


class Shaped(msgspec.Struct, frozen=True, kw_only=True):
    """The members of a group as arrays, in their order."""

    rewards: Array  # with the penalty
    weights: Array
    lengths: Array  # tokens
    changed: int  # members that the penalty changed

    def advantages(self, values: Array, *, changed: int = 0, why: str = "") -> Advantages:
        """The answer with these values; `changed`: members that the rule itself changed."""
        shaped = self.changed + changed
        return Advantages(values=values, weights=self.weights, shaped=shaped, why=why)


def shape(
    members: Sequence[Outcome],
    options: ShapingOptions,
    *,
    keep_equal: bool = False,
    penalties: Sequence[float] | None = None,
) -> Shaped | NoSignal:
    """Return the members with the penalty in their rewards, or why the group is dropped.

    Args:
        keep_equal: for a rule that finds a signal where all rewards are equal.
        penalties: 0 or below for each member, instead of those of `overlong_tokens`.
    """
    if len(members) < 2:
        return NoSignal(why=f"{len(members)} rewarded member; a baseline needs two")
    rewards = np.array([member.reward for member in members], dtype=np.float64)
    if options.drop_equal and not keep_equal and np.ptp(rewards) == 0.0:
        return NoSignal(why=f"every reward is {rewards[0]:g}")
    if penalties is None:
        zone = options.overlong_tokens
        penalties = [overlong_penalty(m.tokens, m.max_tokens, zone) for m in members]
    return Shaped(
        rewards=rewards + np.array(penalties),
        weights=np.array([member.weight for member in members], dtype=np.float64),
        lengths=np.array([member.tokens for member in members], dtype=np.float64),
        changed=sum(penalty < 0 for penalty in penalties),
    )


def less_mean(rewards: Array, options: GroupMeanOptions) -> Array:
    """Rewards less their mean, divided by their deviation if the options say so."""
    values = rewards - rewards.mean()
    if options.divide_by_deviation:
        values = values / (rewards.std(ddof=1) + EPSILON)
    return values


def by_group_mean(members: Sequence[Outcome], options: GroupMeanOptions) -> Advantages | NoSignal:
    """Advantages of `grpo`: each reward, with the penalty, less the mean of its group."""
    shaped = shape(members, options)
    if isinstance(shaped, NoSignal):
        return shaped
    return shaped.advantages(less_mean(shaped.rewards, options))


def right(members: Sequence[Outcome], options: CorrectOptions) -> npt.NDArray[np.bool_]:
    """Which members have answered right."""
    return np.array([member.reward >= options.correct for member in members], dtype=np.bool_)


def weighted_mean(values: Array, by: Array) -> float:
    """The mean with these weights; the plain one where they sum to 0."""
    total = float(by.sum())
    return float((values * by).sum()) / total if total > 0 else float(values.mean())


def overlong_penalty(tokens: int, max_tokens: int, zone: float) -> float:
    """The penalty of this length: 0 before the last `zone` tokens, -1 at the limit.

    Linear in between, also where a budget sets a limit below `zone`.

    >>> [overlong_penalty(tokens, 100, 20) for tokens in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    if not zone:
        return 0.0
    start = max_tokens - zone
    return 0.0 - min(1.0, max(0.0, (tokens - start) / zone))
