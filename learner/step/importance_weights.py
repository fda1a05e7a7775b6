"""Computes importance weights: old (learner) over behaviour (engine) probability.

They correct for the engine's arithmetic and for stale tokens; the ratio of new over old,
which the loss clips, is the learner's own change since.
Source: truncated and masked importance sampling, METHODS of the docs.
"""

from __future__ import annotations

from torch import Tensor


def importance_weights(
    old_BT: Tensor, behaviour_BT: Tensor, *, mode: str, cap: float
) -> tuple[Tensor, Tensor]:
    """Return each token's weight, and 1.0 where it was cut, with w = exp(old - behaviour).

    Args:
        old_BT, behaviour_BT: logprobs of the tokens taken, nats.
        mode: `truncate` gives min(w, cap); `mask` gives w inside [1/cap, cap] and 0
            outside; `off` gives 1.
        cap: at least 1.
    """
    weight_BT = (old_BT - behaviour_BT).exp()
    if mode == "truncate":
        return weight_BT.clamp(max=cap), (weight_BT > cap).float()
    if mode == "mask":
        inside_BT = ((weight_BT >= 1 / cap) & (weight_BT <= cap)).float()
        # where, not a product: values outside may be infinite
        return weight_BT.where(inside_BT > 0, 0.0), 1 - inside_BT
    if mode == "off":
        return old_BT.new_ones(old_BT.shape), old_BT.new_zeros(old_BT.shape)
    raise ValueError(f"unknown importance mode {mode!r}")
