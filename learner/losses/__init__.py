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
    """Advantage of each member; of one with advantages of single tokens a figure for records."""
    advantages_BT: Tensor
    """Advantage of each token: its member's, or its own."""
    rewards_B: Tensor
    lengths_B: Tensor
    """Number of sampled tokens of each member: the sum of its row of `mask_BT`."""
    group_B: Tensor
    """Id of each member's group. A group may be spread over micro-batches, see `Loss`."""
    mask_BT: Tensor
    """1.0 at response tokens that the model sampled, 0.0 elsewhere (environment, padding), and in
    turns that `learner.turn_share` leaves out."""
    weights_B: Tensor
    """Loss weight of each token of a member: the member's own, scaled as `learner.aggregate` says;
    0 for a member that `learner.reject_below`, `reject_band` or `reject_drift` leaves out."""
    importance_BT: Tensor
    """Importance weight of old over behaviour, by `learner.importance`; 1.0 when off."""
    reference_BT: Tensor | None = None
    """Logprobs under the reference model; None without `learner.reference`."""
    entropy_BT: Tensor | None = None
    """Entropy of the policy at each token, nats (detached); None without `learner.entropy` where
    the loss does not say `needs_entropy`."""
    max_tokens: int = 0
    """`sampling.max_tokens`."""


class Loss(Protocol):
    """Computes the loss of a micro-batch.

    It may also offer:

    - `silent_without_advantage`: True if members of advantage 0 add neither value nor gradient.
      They are then counted, but not computed.
    - `aggregate`: `token`, `sequence`, `group` or `constant`, what `learner.aggregate: auto`
      means with it; `token` without.
    - `own_importance`: True if it corrects for stale tokens itself, or not at all:
      `learner.importance` is not applied.
    - `whole_groups`: True if it compares the members of a group. They then share a micro-batch,
      also one above `learner.tokens_per_micro_batch`.
    - `needs_entropy`: True if it reads `entropy_BT`, which is then computed in any case.
    - `step_scale(sums: dict[str, float]) -> float`: asked once for each optimizer step, on every
      rank alike, with the metrics of all its groups summed over the ranks. This step's learning
      rate is multiplied by the answer.
    - `state()` and `restore(state)`: what msgpack holds, saved by every rank with a checkpoint. A
      group may be computed several times, and not every time counts: the state goes back to that
      after the last optimizer step whenever a gradient is built anew. `step_scale` is the place
      to change it.
    """

    def loss(self, batch: LossBatch) -> tuple[Tensor, dict[str, float]]:
        """Return the sum (never mean) over tokens of weight x mask x loss, and metrics.

        The learner divides once, by the normaliser of the optimizer step. Metrics are sums over
        the same tokens; a name that ends in `_max` is a maximum, one that begins with `_` is for
        `step_scale` alone and not reported.
        """
        ...
