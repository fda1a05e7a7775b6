"""Defines what a loss plug-in is given, and what it must return.

A loss is a plug-in like any other (`pipeline.plugins.registry.register("loss", NAME)`).
Its module must not import torch: processes that never load torch check the
configuration, and tensor methods suffice.

Axes: B sequences of a micro-batch, T positions whose next token is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LossBatch:
    """One micro-batch, right-padded; padding and appended tokens are finite and masked."""

    logprobs_BT: Tensor
    """Logprobs of the tokens under the weights being trained; the only tensor with a gradient."""
    old_logprobs_BT: Tensor
    """Logprobs under the weights that sampled each token (detached): those that the batch began
    with, or of an older version, with `learner.max_staleness`."""
    behaviour_BT: Tensor
    """Logprobs that the engine reported when it sampled the tokens."""
    advantages_B: Tensor
    mask_BT: Tensor
    """1.0 at response tokens that the model sampled, 0.0 elsewhere (environment, padding)."""
    weights_B: Tensor
    """Loss weight of each member."""
    importance_BT: Tensor
    """Importance weight of old over behaviour, by `learner.importance`; 1.0 when off."""
    reference_BT: Tensor | None = None
    """Logprobs under the reference model; None without `learner.reference`."""
    entropy_BT: Tensor | None = None
    """Entropy of the policy at each token, nats (detached); None without `learner.entropy`."""


class Loss(Protocol):
    """Computes the loss of a micro-batch.

    If members of advantage 0 add neither value nor gradient, set an attribute
    `silent_without_advantage` to True: they are then counted, but not computed.
    """

    def loss(self, batch: LossBatch) -> tuple[Tensor, dict[str, float]]:
        """Return the sum (never mean) over tokens of weight x mask x loss, and metrics.

        The learner divides once, by the normaliser of the optimizer step. Metrics
        are sums over the same tokens; a name that ends in `_max` is a maximum.
        """
        ...
