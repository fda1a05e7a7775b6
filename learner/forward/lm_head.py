"""Computes logprobs of a packed call without holding the logits of all its tokens at once.

With a vocabulary of 150,000 the logits of 4,096 tokens take 2.4 GiB in float32,
and several times that in backward. Where they would be large, the model runs
without its output layer; that layer then runs part by part, and its logits are
thrown away and computed again in backward. The values are those of the whole
call, in the same order of operations.

Axes: P packed tokens, N those whose next token is known (the last ones), R rows of
one part, H hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from learner.forward.packed_attention import bare_model, packed_logits
from learner.forward.packed_call import PackedCall

LARGEST_LOGITS = 1 << 26
"""Most logits of one part: 256 MiB in float32. A call with fewer is not split."""
_ENTROPY_ROWS = 512


def packed_logprobs(
    model: Any,
    tokens_P: Tensor,
    call: PackedCall,
    taken_N: Tensor,
    temperature: float,
    *,
    entropy: bool = False,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return logprobs of the tokens taken given all before them, nats, and entropies.

    Args:
        model: a transformers causal LM, or the DeepSpeed engine around it.
        entropy: compute entropies, without `entropy_gradient` detached.
    """
    bare = bare_model(model)
    score = functools.partial(
        _scored, temperature=temperature, entropy=entropy, entropy_gradient=entropy_gradient
    )
    output = bare.get_output_embeddings()
    rows = max(1, LARGEST_LOGITS // output.weight.shape[0]) if _parts_allowed(bare) else 0
    if not rows or len(taken_N) <= rows:
        logits_NV = packed_logits(model, tokens_P, call, len(taken_N))
        return score(logits_NV, taken_N)

    def part(hidden_RH: Tensor, taken_R: Tensor) -> tuple[Tensor, Tensor | None]:
        return score(output(hidden_RH), taken_R)

    hidden_NH = packed_hidden(model, tokens_P, call, len(taken_N))
    found = [
        checkpoint(part, hidden_RH, taken_R, use_reentrant=False, preserve_rng_state=False)
        for hidden_RH, taken_R in zip(hidden_NH.split(rows), taken_N.split(rows), strict=True)
    ]
    logprobs_N = torch.cat([logprobs_R for logprobs_R, _ in found])
    return logprobs_N, torch.cat([entropy_R for _, entropy_R in found]) if entropy else None


def packed_hidden(model: Any, tokens_P: Tensor, call: PackedCall, last: int) -> Tensor:
    """Return the output layer's input for the `last` packed tokens: shape (last, H)."""
    kept: list[Tensor] = []

    def divert(_module: Any, given: tuple[Tensor]) -> tuple[Tensor]:
        kept.append(given[0])
        return (given[0][:, :0],)

    handle = bare_model(model).get_output_embeddings().register_forward_pre_hook(divert)
    try:
        nothing = packed_logits(model, tokens_P, call, last)
    finally:
        handle.remove()
    [hidden_1NH] = kept
    # DeepSpeed starts its backward at the tensor that the model returned.
    return hidden_1NH[0] + nothing.sum().to(hidden_1NH.dtype)


@torch.no_grad()
def output_is_last(model: Any, tokens_P: Tensor, call: PackedCall, logits_NV: Tensor) -> bool:
    """Return True if the output layer makes the logits, with no cap or scale after it."""
    hidden_NH = packed_hidden(model, tokens_P, call, len(logits_NV))
    return torch.equal(bare_model(model).get_output_embeddings()(hidden_NH), logits_NV)


def _parts_allowed(bare: Any) -> bool:
    """Return True if the output layer may run by itself.

    That was checked when the model was loaded. Not with ZeRO 3, which partitions the layer,
    and not with adapters on it, which a reference switches off only inside the model's call.
    """
    output = bare.get_output_embeddings()
    whole = not hasattr(output.weight, "ds_id") and not hasattr(output, "lora_A")
    return whole and getattr(bare, "darts_output_is_last", False)


def _scored(
    logits_NV: Tensor,
    taken_N: Tensor,
    temperature: float,
    *,
    entropy: bool,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    logprobs_N = token_logprobs(logits_NV, taken_N, temperature)
    if not entropy:
        return logprobs_N, None
    return logprobs_N, entropies(logits_NV, temperature, gradient=entropy_gradient)


def token_logprobs(logits: Tensor, taken: Tensor, temperature: float) -> Tensor:
    """Compute logprobs of the tokens taken, at a temperature, in float32.

    Args:
        logits: shape (..., V).
        taken: token ids, shape (...).
    """
    scaled = logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    return scaled.gather(-1, taken.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)


def entropies(logits_NV: Tensor, temperature: float, *, gradient: bool = False) -> Tensor:
    """Compute the entropy of each distribution at a temperature, nats, in float32: shape (N,).

    Args:
        gradient: keep the graph, which holds the probabilities of the whole vocabulary.
    """
    found: list[Tensor] = []
    with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
        for part_NV in logits_NV.split(_ENTROPY_ROWS):  # a large vocabulary is not held twice
            logprobs_NV = (part_NV.float() / temperature).log_softmax(-1)
            found.append(-(logprobs_NV.exp() * logprobs_NV).sum(-1))
    return torch.cat(found)
