"""What the losses share: ratios, the sum over tokens with its metrics, divergence from a reference.

Axes as in `learner.losses`. A name that ends in B1 has one column for all tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from learner.losses import LossBatch
from pipeline.plugins import interfaces
from pipeline.plugins.ranges import NonNegativeFloat

if TYPE_CHECKING:
    from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
Found = tuple["Tensor", dict[str, float]]
"""What a loss returns."""


class KlOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of every loss that sums over tokens."""

    kl: NonNegativeFloat = 0.0
    """Coefficient of the divergence from `learner.reference` in each token's loss; 0: off."""
    kl_estimator: Estimator = "k3"
    """Estimator of the divergence. With d = reference minus own logprob: k1 is -d (its gradient
    is 0 on average), k2 is d * d / 2, k3 is exp(d) - d - 1."""


def ratio(batch: LossBatch) -> Tensor:
    """Compute new over old probability of each token: shape (B, T)."""
    return (batch.logprobs_BT - batch.old_logprobs_BT).exp()


def sequence_mean(values_BT: Tensor, batch: LossBatch) -> Tensor:
    """Average over each row's sampled tokens: shape (B, 1)."""
    lengths_B1 = batch.lengths_B.unsqueeze(1).clamp(min=1)
    return (values_BT * batch.mask_BT).sum(1, keepdim=True) / lengths_B1


def entropy_of(batch: LossBatch) -> Tensor:
    """Return the entropies of a batch for a loss that says `needs_entropy`: shape (B, T).

    Raises: ValueError if they were not computed.
    """
    if batch.entropy_BT is None:
        raise ValueError("this loss needs entropies: it must say needs_entropy")
    return batch.entropy_BT


def rows_by_group(batch: LossBatch) -> Iterator[tuple[int, Tensor]]:
    """Yield each group's id and, as booleans, its rows: shape (B,)."""
    for group in sorted(set(batch.group_B.tolist())):
        yield group, batch.group_B == group


def counts(batch: LossBatch) -> Tensor:
    """Return the weight with which each token counts, 0 outside the mask: shape (B, T)."""
    return batch.mask_BT * batch.weights_B.unsqueeze(1)


def summed(
    batch: LossBatch,
    loss_BT: Tensor,
    ratio_BT: Tensor,
    options: KlOptions,
    *,
    clipped_BT: Tensor | None = None,
) -> Found:
    """Sum the loss of all tokens, with `kl` times the divergence; and the usual metrics.

    Args:
        ratio_BT: reported as its mean.
        clipped_BT: True at tokens whose gradient was cut; None: this loss cuts none.
    """
    count_BT = counts(batch)
    loss = (loss_BT * batch.importance_BT * count_BT).sum()
    gap_BT = (batch.old_logprobs_BT - batch.behaviour_BT).abs() * batch.mask_BT
    metrics = {
        "ratio": (ratio_BT.detach() * count_BT).sum().item(),
        "mismatch": (gap_BT * count_BT).sum().item(),
        "mismatch_max": gap_BT.max().item(),
    }
    if clipped_BT is not None:
        metrics["clipped"] = (clipped_BT * count_BT).sum().item()
    if batch.reference_BT is not None:
        kl_BT = divergence(batch.logprobs_BT, batch.reference_BT, options.kl_estimator)
        kl = (kl_BT * count_BT).sum()
        metrics["kl"] = kl.item()
        if options.kl:
            loss = loss + options.kl * kl
    return loss, {"loss": loss.item(), **metrics}


def divergence(logprobs_BT: Tensor, reference_BT: Tensor, estimator: Estimator) -> Tensor:
    """Estimate KL(policy || reference) at each sampled token, nats: shape (B, T)."""
    d_BT = reference_BT - logprobs_BT
    match estimator:
        case "k1":
            return -d_BT
        case "k2":
            return d_BT.square() / 2
        case "k3":
            return d_BT.exp() - d_BT - 1
