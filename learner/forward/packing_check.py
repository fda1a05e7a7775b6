"""Checks at the start that packed calls compute the same as the model by itself.

Some architectures pass everything that shapes their attention to the attention function,
others put a part of it into masks that packed calls never see. Only a comparison shows
which: once for a loaded model, before DeepSpeed has it. A window longer than the
comparison is checked by the keywords that the layers pass.
"""

from __future__ import annotations

from typing import Any

import torch

from learner.forward.lm_head import output_is_last, token_logprobs
from learner.forward.micro_batches import pack_whole
from learner.forward.packed_attention import AttentionError, packed_logits, switch_attention

LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest mean difference of logprobs, nats. Float32: 5e-7 over 25 architectures of random,
sharpened weights; errors show 0.1 and more. Bfloat16 rounds to 8 bits: 0.01 to 0.02 there."""
_PROMPT, _RESPONSES = 12, (20, 3, 1)
_SEED = 20606


@torch.no_grad()
def prove_packing(model: Any, kind: str) -> None:
    """Switch a transformers causal LM to packed calls, and compare both.

    Args:
        kind: `learner.attention`.

    Raises: AttentionError that says what this model does and packed calls cannot.
    """
    name = type(model).__name__
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(_SEED)
    rows = int(model.get_input_embeddings().weight.shape[0])
    drawn = torch.randint(rows, (_PROMPT + sum(_RESPONSES),), generator=generator).tolist()
    prompt, rest = drawn[:_PROMPT], torch.tensor(drawn[_PROMPT:])
    responses: list[list[int]] = [part.tolist() for part in rest.split(_RESPONSES)]
    model.set_attn_implementation("eager")  # it supports everything
    expected: list[torch.Tensor] = []
    for response in responses:
        tokens = torch.tensor([prompt + response], device=device)
        logits = model(input_ids=tokens, use_cache=False).logits[0, _PROMPT - 1 : -1]
        expected.append(token_logprobs(logits, tokens[0, _PROMPT:], 1.0))
    switch_attention(model, kind)
    packed = pack_whole([(prompt, responses)], device)
    try:
        logits = packed_logits(model, packed.tokens_P, packed.call, len(packed.taken_N))
    except (RuntimeError, ValueError, TypeError) as error:
        raise AttentionError(f"{name} cannot run packed sequences: {error}") from error
    found = token_logprobs(logits, packed.taken_N, 1.0)
    gap = float((found - torch.cat(expected)).abs().mean())
    limit = LIMITS[next(model.parameters()).dtype]
    if not gap <= limit:
        raise AttentionError(
            f"{name}: logprobs of packed sequences are {gap:.2g} nats from its own, more than "
            f"{limit:g}: its attention depends on something that packed calls do not see; take a "
            "model of another architecture"
        )
    if unseen := [
        layer for layer in sliding_window_layers(model) if packed.call.windows[layer] is None
    ]:
        raise AttentionError(
            f"{name}: layer {unseen[0]} has a sliding window of {model.config.sliding_window} "
            "tokens that it does not pass to its attention: packed calls would ignore it"
        )

    model.darts_output_is_last = output_is_last(model, packed.tokens_P, packed.call, logits)


def sliding_window_layers(model: Any) -> list[int]:
    """Return the layers that see only a sliding window."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return []
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return list(range(config.num_hidden_layers))
    return [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]
