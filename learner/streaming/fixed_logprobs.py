"""Computes logprobs that stay fixed while weights change: old ones, and the reference model's.

Computed without gradient when a group arrives, kept by trajectory, and aligned
with the micro-batches of any later split. Axes as in `learner.forward.micro_batches`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from learner.forward.micro_batches import Forward, MicroBatch, loss_batch

ByTrajectory = dict[int, Tensor]
"""Trajectory -> logprobs of its sampled response tokens, nats, shape (tokens,)."""


@torch.no_grad()
def member_logprobs(
    model: Forward, batches: Iterable[MicroBatch], temperature: float
) -> ByTrajectory:
    """Run one forward pass per micro-batch; returns the logprobs by trajectory."""
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
    """Place members' values at their sampled tokens, `padding_BT` elsewhere: shape (B, T)."""
    found_BT = padding_BT.detach().clone()
    values = torch.cat([known[trajectory] for trajectory in trajectories])
    found_BT[mask_BT > 0] = values.to(found_BT.device)  # streamed ones are on the CPU
    return found_BT
