"""A plain batched sampler with a key-value cache: prompts in, responses out.

All prompts are one batch, with one token a step. Invariant: a row's distribution depends only on
its prompt. Ended rows leave the batch when they are a quarter of it. Knows no tasks or rewards.

Shapes: B rows still in the batch, T tokens of prompt (padded on the left), V vocabulary.
"""

# torch and transformers leave parts of their signatures untyped.
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from transformers import DynamicCache

COMPACT_AT = 0.25  # share of ended rows; each compaction copies the whole cache once


class CausalLM(Protocol):
    """The part of a transformers model that is used; the result has `.logits`."""

    def __call__(self, *, input_ids: torch.Tensor, **inputs: Any) -> Any: ...


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    tokens: tuple[int, ...]  # with the end-of-sequence token, if there is one
    ended: bool  # False: cut at the limit


@torch.no_grad()
def sample_batch(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    eos: int,
    generator: torch.Generator,
    pad: int = 0,
    temperature: float = 1.0,
) -> list[Response]:
    """Samples one response for each prompt; repeat a prompt k times to get k of them.

    Args:
        prompts: token ids, none empty.
        max_tokens: limit of a response, tokens.
        eos, pad: token ids; `pad` fills short prompts and is masked.
        generator: the only source of randomness.
    """
    width = max(map(len, prompts))
    seen_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    input_BT = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    position_BT = (seen_BT.cumsum(1) - 1).clamp(min=0)
    responses: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which response a row of the batch writes to
    running = torch.ones(len(prompts), dtype=torch.bool)
    cache = DynamicCache()

    for _ in range(max_tokens):
        out = model(
            input_ids=input_BT,
            attention_mask=seen_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV = cast(torch.Tensor, out.logits)[:, -1].float() / temperature
        chosen_B = torch.multinomial(logits_BV.softmax(-1), 1, generator=generator).squeeze(1)
        chosen = cast(list[int], chosen_B.tolist())
        for i in cast(list[int], running.nonzero().flatten().tolist()):
            responses[rows[i]].append(chosen[i])
        running &= chosen_B != eos
        left = int(running.sum())
        if not left:
            break
        input_BT, position_BT = chosen_B[:, None], position_BT[:, -1:] + 1
        seen_BT = torch.cat([seen_BT, torch.ones_like(input_BT)], dim=1)
        if left <= (1 - COMPACT_AT) * len(rows):
            kept = running.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            input_BT, position_BT, seen_BT = input_BT[kept], position_BT[kept], seen_BT[kept]
            rows, running = [rows[i] for i in cast(list[int], kept.tolist())], running[kept]
    return [Response(tuple(tokens), ended=tokens[-1] == eos) for tokens in responses]
