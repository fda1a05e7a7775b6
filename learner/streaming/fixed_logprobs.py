"""Groups -> logprobs that stay fixed while weights move: old ones, and the reference model's.

Computed without gradient when a group arrives, kept by trajectory, and laid
over the micro-batches of any later split. Axes as in `learner.forward.micro_batches`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learner.forward.micro_batches import Forward, MicroBatch, loss_batch

ByTrajectory = dict[int, Tensor]
"""Trajectory -> logprob of each of its sampled response tokens, nats, shape (tokens,)."""


@torch.no_grad()
def member_logprobs(
    model: Forward, batches: Sequence[MicroBatch], temperature: float
) -> ByTrajectory:
    """One forward pass a micro-batch, cut into its members."""
    found: ByTrajectory = {}
    for batch in batches:
        computed = loss_batch(model, batch, temperature)
        mask_BT = computed.mask_BT > 0
        tokens = mask_BT.sum(1).tolist()
        values = computed.logprobs_BT[mask_BT].split(tokens)
        found.update(zip(batch.trajectories, (part.clone() for part in values), strict=True))
    return found


def align(
    known: Mapping[int, Tensor], trajectories: Sequence[int], mask_BT: Tensor, padding_BT: Tensor
) -> Tensor:
    """The members' values at their sampled tokens, `padding_BT` elsewhere: shape (B, T)."""
    found_BT = padding_BT.detach().clone()
    values = torch.cat([known[trajectory] for trajectory in trajectories])
    found_BT[mask_BT > 0] = values.to(found_BT.device)  # streamed ones come from the CPU
    return found_BT
