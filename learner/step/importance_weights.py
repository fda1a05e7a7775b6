"""Computes importance weights: old (learner) over behaviour (engine) probability.

They correct for the engine's arithmetic and for stale tokens; the ratio of new over old,
which the loss clips, is the learner's own change since.
Source: truncated and masked importance sampling, METHODS of the docs; weights of whole
sequences and the filter of responses as in ROLL (code alibaba/ROLL).
"""

from __future__ import annotations

from torch import Tensor


def shaped_weights(logprobs_BT: Tensor, gamma: float) -> Tensor:
    """Return the weight of tokens whose behaviour logprob is not known, with p = exp(logprob).

    With gamma 0 it is 1: the gradient is A times that of the logprob, and nothing is clipped. Else
    the objective is f(p) A with f(p) = p / (p + gamma), whose gradient is that of the logprob times

        p f'(p) A = gamma p / (p + gamma)^2 A    at most A / 4, at p = gamma

    so that unlikely tokens are learned from and likely ones left alone.
    Source: policy shaping of LUFFY, arXiv 2504.14945, gamma 0.1 there.

    Args:
        logprobs_BT: logprobs under the weights being trained, nats.
    """
    if not gamma:
        return logprobs_BT.new_ones(logprobs_BT.shape)
    p_BT = logprobs_BT.exp()
    return gamma * p_BT / (p_BT + gamma).square()


def importance_weights(
    old_BT: Tensor, behaviour_BT: Tensor, *, mode: str, cap: float, mask_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return each token's weight, and 1.0 where it was cut, with w = exp(old - behaviour).

    Args:
        old_BT, behaviour_BT: logprobs of the tokens taken, nats.
        mode: `truncate` gives min(w, cap); `mask` gives w inside [1/cap, cap] and 0
            outside; `sequence` gives every token of a sequence min(product of its w, cap), and
            `geometric` min(their geometric mean, cap); `off` gives 1.
        cap: at least 1.
        mask_BT: 1.0 at the tokens that belong to the sequence; None: all.
    """
    log_BT = old_BT - behaviour_BT
    if mode in ("sequence", "geometric"):
        mask_BT = log_BT.new_ones(log_BT.shape) if mask_BT is None else mask_BT
        log_B1 = (log_BT * mask_BT).sum(-1, keepdim=True)
        if mode == "geometric":
            log_B1 = log_B1 / mask_BT.sum(-1, keepdim=True).clamp(min=1)
        weight_BT = log_B1.exp().expand_as(log_BT)
        return weight_BT.clamp(max=cap), (weight_BT > cap).float()
    weight_BT = log_BT.exp()
    if mode == "truncate":
        return weight_BT.clamp(max=cap), (weight_BT > cap).float()
    if mode == "mask":
        inside_BT = ((weight_BT >= 1 / cap) & (weight_BT <= cap)).float()
        # where, not a product: values outside may be infinite
        return weight_BT.where(inside_BT > 0, 0.0), 1 - inside_BT
    if mode == "off":
        return old_BT.new_ones(old_BT.shape), old_BT.new_zeros(old_BT.shape)
    raise ValueError(f"unknown importance mode {mode!r}")


def rejected_rows(
    old_BT: Tensor, behaviour_BT: Tensor, mask_BT: Tensor, *, below: float, band: float
) -> Tensor:
    """Return 1.0 for each response that is left out, with w = exp(old - behaviour): shape (B,).

    Args:
        old_BT, behaviour_BT: logprobs of the tokens taken, nats.
        mask_BT: 1.0 at sampled tokens.
        below: a response with any w below it is left out; 0: none.
        band: one whose geometric mean of w is outside [1/band, band] is left out; 0: none.
    """
    log_BT = (old_BT - behaviour_BT) * mask_BT
    rejected_B = log_BT.new_zeros(log_BT.shape[0])
    if below:
        rejected_B = rejected_B.maximum((log_BT.exp() < below).any(-1).float())
    if band:
        mean_B = (log_BT.sum(-1) / mask_BT.sum(-1).clamp(min=1)).exp()
        rejected_B = rejected_B.maximum(((mean_B < 1 / band) | (mean_B > band)).float())
    return rejected_B


def drifted_rows(
    logprobs_BT: Tensor, behaviour_BT: Tensor, mask_BT: Tensor, *, limit: float
) -> Tensor:
    """Return 1.0 for each response whose mean logprob has fallen by more than `limit`: shape (B,).

    Source: the mask of off-policy sequences of DeepSeek-V3.2 (arXiv 2512.02556), which leaves
    out those of negative advantage.

    Args:
        logprobs_BT: logprobs under the weights being trained, nats.
        behaviour_BT: those of the engine that sampled the tokens.
        mask_BT: 1.0 at sampled tokens.
    """
    drift_B = ((behaviour_BT - logprobs_BT) * mask_BT).sum(-1) / mask_BT.sum(-1).clamp(min=1)
    return (drift_B > limit).float()
