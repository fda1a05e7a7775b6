"""Chooses the turns of a response that are trained on: those the policy was least sure in.

A turn is a run of sampled tokens; what an environment appends lies between two.
Source: step-level selection of DART-GUI, arXiv 2509.23866, 80% of the steps with the highest
mean entropy there. Ours: the entropies are those of the pass that trains.
"""

from __future__ import annotations

import torch
from torch import Tensor


def uncertain_turns(entropy_BT: Tensor, mask_BT: Tensor, share: float) -> Tensor:
    """Return 1.0 at the sampled tokens of each row's turns with the highest mean entropy.

    Of n turns share x n are kept, rounded, halves up, and at least one; of equal ones the earlier.

    >>> entropy_BT = torch.tensor([[0.1, 0.0, 0.9, 0.0, 0.5, 0.0, 0.7, 0.0, 0.3]])
    >>> uncertain_turns(entropy_BT, (entropy_BT > 0).float(), 0.8).int().tolist()
    [[0, 0, 1, 0, 1, 0, 1, 0, 1]]

    Args:
        mask_BT: 1.0 at tokens that the model sampled.
        share: above 0, at most 1.
    """
    sampled_BT = mask_BT > 0
    begins_BT = sampled_BT.clone()
    begins_BT[:, 1:] &= ~sampled_BT[:, :-1]
    turn_BT = begins_BT.cumsum(1)  # from 1; what is not sampled has that of the turn before it
    shape = (len(mask_BT), int(turn_BT.max()) + 1)
    tokens_BS = mask_BT.new_zeros(shape).scatter_add_(1, turn_BT, mask_BT)
    entropies_BS = mask_BT.new_zeros(shape).scatter_add_(1, turn_BT, entropy_BT * mask_BT)
    # Turns that a row does not have, and 0 before its first, are never before one that it has.
    mean_BS = (entropies_BS / tokens_BS).where(tokens_BS > 0, -torch.inf)
    turns_B1 = begins_BT.sum(1, keepdim=True)
    kept_B1 = (turns_B1 * share + 0.5).floor().clamp(min=1)
    rank_BS = mean_BS.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank_BS < kept_B1).to(mask_BT.dtype).gather(1, turn_BT) * mask_BT
