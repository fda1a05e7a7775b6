"""Finds the tokens whose logprob and advantage move together, which cost entropy the fastest.

The covariance of a token is (A - mean A)(log p - mean log p). Source: arXiv 2505.22617, section
4.2. Ours: means and shares are over a group, not over a micro-batch as in the authors' code, so
that a choice does not depend on what else is in the call; a share of less than one token is one
token with that probability. Random numbers follow from the group's id: a replay chooses alike.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from learner.losses import LossBatch
from learner.losses._terms import rows_by_group

if TYPE_CHECKING:
    from torch import Tensor


def covariances(batch: LossBatch) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield for each group its id, the places of its N sampled tokens in a flat (B, T), and their
    covariances, shape (N,)."""
    logprobs_BT = batch.logprobs_BT.detach()
    for group, rows_B in rows_by_group(batch):
        held_BT = (batch.mask_BT > 0) & rows_B.unsqueeze(1)
        advantages_N, logprobs_N = batch.advantages_BT[held_BT], logprobs_BT[held_BT]
        yield (
            group,
            held_BT.flatten().nonzero().squeeze(1),
            (advantages_N - advantages_N.mean()) * (logprobs_N - logprobs_N.mean()),
        )


def some_of(tokens: int, share: float, rng: random.Random) -> int:
    """Return how many tokens a share of them is, rounded up or down at random.

    >>> [some_of(10, 0.25, random.Random(seed)) for seed in range(4)]
    [3, 2, 3, 2]
    """
    return int(tokens * share + rng.random())


def rng_of(loss: str, group: int) -> random.Random:
    """Make the random numbers of a group, the same whenever it is computed."""
    return random.Random(f"{loss}/{group}")
