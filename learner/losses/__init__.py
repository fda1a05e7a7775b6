"""The loss seam: what a loss is given, and what it must answer.

A loss is a plug-in like any other (`pipeline.plugins.registry.register("loss", NAME)`).
Its module must not import torch: the configuration is checked in processes
that never load it, and tensor methods suffice.

Axes: B sequences of a micro-batch, T positions whose next token is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LossBatch:
    """One micro-batch, right-padded; padding and what was appended are finite and masked."""

    logprobs_BT: Tensor
    """Of the tokens taken, under the weights being trained; the only one with a gradient."""
    old_logprobs_BT: Tensor
    """Under the learner's weights that the batch began with (detached)."""
    behaviour_BT: Tensor
    """As the engine reported them when it sampled the tokens."""
    advantages_B: Tensor
    mask_BT: Tensor
    """1.0 at response tokens that the model sampled, 0.0 at those that an environment
    appended."""
    weights_B: Tensor
    """Loss weight of each member."""
    importance_BT: Tensor
    """Importance weight of old over behaviour, by `learner.importance`; 1.0 when off."""
    reference_BT: Tensor | None = None
    """Under the reference model; None without `learner.reference`."""
    entropy_BT: Tensor | None = None
    """Of the policy's distribution at each token, nats (detached); None without
    `learner.entropy`."""


class Loss(Protocol):
    """A loss to which members of advantage 0 add nothing, neither value nor gradient, may say so
    with a true attribute `silent_without_advantage`: they are then counted, but not computed."""

    def loss(self, batch: LossBatch) -> tuple[Tensor, dict[str, float]]:
        """Sum (never mean) over tokens of weight x mask x loss, and metrics.

        The learner divides once, by the normaliser of the optimizer step. Metrics
        are sums over the same tokens; a name that ends in `_max` is a maximum.
        """
        ...
