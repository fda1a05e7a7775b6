"""Computes attention over transformers' paged cache by batched gathers, in plain torch.

Without a flash kernel the library uses one mask of all tokens of the batch times all
cached keys: quadratic in the number of sequences. Here each sequence sees its own keys
only: sequences of similar lengths are padded to one call. Invariant: the result is scaled
dot product attention, causal within each sequence; a call without a paged cache raises.

Axes: P packed tokens, C cached and new keys of all sequences, N sequences of a
call, Q and K its padded queries and keys, H heads, G heads that share a head of
keys, D head dimension.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache

NAME = "darts_paged"
_CHANGES_ATTENTION = ("sliding_window", "softcap", "s_aux", "position_bias")
"""Keywords of other models' attention that are not supported here."""
_CACHE: Any = PagedAttentionCache
_FROM_KEYWORDS = "kwargs" in inspect.signature(_CACHE.update).parameters
"""`update` takes the indices out of the keywords (from 5.19), not one by one (5.17)."""


def attends_to_all(config: Any) -> bool:
    """Return True if all layers of a model attend to everything before them.

    Args:
        config: of a transformers causal LM.
    """
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return set(kinds) == {"full_attention"} and getattr(config, "sliding_window", None) is None


@dataclass(frozen=True, slots=True)
class PaddedCall:
    """Sequences of similar lengths, padded; a padded query repeats the last one."""

    queries_NQ: Tensor  # rows of the packed tokens
    keys_NK: Tensor  # rows of the keys
    mask_N1QK: Tensor  # True: may be seen


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The calls of one forward pass."""

    calls: list[PaddedCall]
    places_P: Tensor  # index of each packed token in the concatenated outputs of the calls


def plan_calls(queries: list[int], keys: list[int], device: torch.device) -> AttentionPlan:
    """Plan the calls, given the new tokens of each sequence, and its keys with those.

    >>> plan = plan_calls([1, 1, 5], [9, 12, 5], torch.device("cpu"))
    >>> [tuple(call.mask_N1QK.shape) for call in plan.calls]
    [(2, 1, 1, 12), (1, 1, 5, 5)]
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for number, (new, all_) in enumerate(zip(queries, keys, strict=True)):
        # Queries within a factor of 2, keys of 4: little padding, few calls.
        alike.setdefault(((new - 1).bit_length(), (all_ - 1).bit_length() // 2), []).append(number)
    new_S, all_S = torch.tensor(queries), torch.tensor(keys)
    first_query_S, first_key_S = new_S.cumsum(0) - new_S, all_S.cumsum(0) - all_S
    places_P = torch.empty(sum(queries), dtype=torch.int64)
    calls: list[PaddedCall] = []
    end = 0
    for members in alike.values():
        of = torch.tensor(members)
        new_N1, all_N1 = new_S[of].unsqueeze(1), all_S[of].unsqueeze(1)
        column_Q, column_K = torch.arange(int(new_N1.max())), torch.arange(int(all_N1.max()))
        query_NQ = torch.minimum(column_Q.unsqueeze(0), new_N1 - 1)
        queries_NQ = first_query_S[of].unsqueeze(1) + query_NQ
        keys_NK = first_key_S[of].unsqueeze(1) + torch.minimum(column_K.unsqueeze(0), all_N1 - 1)
        seen_NQ1 = (query_NQ + all_N1 - new_N1).unsqueeze(-1)  # the last key that it may see
        mask_N1QK = (column_K <= seen_NQ1).unsqueeze(1)
        flat = end + torch.arange(queries_NQ.numel()).view_as(queries_NQ)
        real_NQ = column_Q.unsqueeze(0) < new_N1
        places_P[queries_NQ[real_NQ]] = flat[real_NQ]
        end += queries_NQ.numel()
        calls.append(PaddedCall(queries_NQ.to(device), keys_NK.to(device), mask_N1QK.to(device)))
    return AttentionPlan(calls, places_P.to(device))


def attend_paged(
    plan: AttentionPlan, query_PHD: Tensor, key_CHD: Tensor, value_CHD: Tensor, scale: float | None
) -> Tensor:
    """Return the outputs of all packed tokens: shape (P, H, D).

    Args:
        query_PHD: of the new tokens, sequence after sequence.
        key_CHD, value_CHD: of all tokens of each sequence; H may be smaller by a factor G.
        scale: of the scores; None: 1 / sqrt(D).
    """
    heads, shared = query_PHD.size(1), query_PHD.size(1) // key_CHD.size(1)
    outputs: list[Tensor] = []
    for call in plan.calls:
        queries = call.queries_NQ.size(1)
        # Heads that share keys become additional queries: no key is repeated.
        query = query_PHD[call.queries_NQ].unflatten(2, (-1, shared))
        found = scaled_dot_product_attention(
            query.permute(0, 2, 3, 1, 4).flatten(2, 3),  # (N, H / G, G Q, D)
            key_CHD[call.keys_NK].transpose(1, 2),
            value_CHD[call.keys_NK].transpose(1, 2),
            attn_mask=call.mask_N1QK.repeat(1, 1, shared, 1),
            scale=scale,
        )
        found = found.unflatten(2, (shared, queries)).permute(0, 3, 1, 2, 4)
        outputs.append(found.reshape(-1, heads, found.size(-1)))
    return torch.cat(outputs)[plan.places_P]


class _Paged:
    """The attention function; remembers the plan of the present forward pass."""

    def __init__(self) -> None:
        # The object that all layers of one pass receive, and the plan made from it.
        self._newest: tuple[Tensor, AttentionPlan] | None = None

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        cache: Any = None,
        **named: Any,
    ) -> tuple[Tensor, None]:
        """Return outputs of shape (1, P, H, D), and no weights.

        Raises: ValueError without a paged cache, or for an unsupported kind of attention.
        """
        del attention_mask, dropout
        if cache is None:
            raise ValueError(f"the attention {NAME} needs continuous batching's paged cache")
        if unknown := [name for name in _CHANGES_ATTENTION if named.get(name) is not None]:
            raise ValueError(
                f"layer {module.layer_idx} needs {unknown[0]}, which {NAME} does not support: set "
                "engine.transformers.attn_implementation to sdpa"
            )
        keys_CHD, values_CHD = self._updated(cache, module.layer_idx, key, value, named)
        starts: Tensor = named["cu_seq_lens_q"]
        if self._newest is None or starts is not self._newest[0]:
            queries, keys = starts.diff().tolist(), named["cu_seq_lens_k"].diff().tolist()
            self._newest = starts, plan_calls(queries, keys, query.device)
        plan = self._newest[1]
        found = attend_paged(plan, query[0].transpose(0, 1), keys_CHD, values_CHD, scaling)
        return found.unsqueeze(0), None

    @staticmethod
    def _updated(
        cache: Any, layer: int, key: Tensor, value: Tensor, named: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values to the cache; returns those of all sequences: (C, H, D)."""
        if (
            _FROM_KEYWORDS
        ):  # it also replaces the lengths of all kinds of layers by those of this one
            found = cache.update(key, value, layer, named)
            return found[0][0].transpose(0, 1), found[1][0].transpose(0, 1)
        return cache.update(key, value, layer, named["read_index"], named["write_index"])


AttentionInterface.register(NAME, _Paged())
