"""Attention of packed calls, for any transformers model that hands keywords through.

Turns a model and a `ragged.Call` into logits without a padded token. Invariant:
a call without `ragged` is stock scaled dot product attention, bit for bit, so
a model that has been switched once serves everyone.

Axes: P packed tokens, H heads, N heads of keys and values, D head dimension, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from learner.ragged import Call

NAME = "darts"
_CHANGES_ATTENTION = ("sliding_window", "softcap", "s_aux", "position_bias")
"""Keywords of other models' attention that would have to be obeyed here."""


class AttentionError(Exception):
    """The model's attention cannot run packed calls."""


def packed_attention(
    module: Any,
    query_1HPD: Tensor,
    key_1NPD: Tensor,
    value_1NPD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    ragged: Call | None = None,
    **named: Any,
) -> tuple[Tensor, None]:
    """The attention function `darts`: output of shape (1, P, H, D), and no weights.

    Raises: AttentionError if the layer's attention is of a kind that is not built here.
    """
    if ragged is None:
        return sdpa_attention_forward(
            module, query_1HPD, key_1NPD, value_1NPD, attention_mask, dropout, scaling, **named
        )
    if unknown := [name for name in _CHANGES_ATTENTION if named.get(name) is not None]:
        raise AttentionError(f"layer {module.layer_idx} needs {unknown[0]}: packed calls have none")
    ragged.layers.add(module.layer_idx)
    query_PHD = query_1HPD[0].transpose(0, 1)
    keys_RND, values_RND = key_1NPD[0].transpose(0, 1), value_1NPD[0].transpose(0, 1)
    if ragged.pool is not None:
        assert ragged.writes_P is not None
        keys_RND, values_RND = ragged.pool.write(
            module.layer_idx, ragged.writes_P, keys_RND, values_RND
        )
    outputs: list[Tensor] = []
    for bucket in ragged.buckets:
        found_BHCD = scaled_dot_product_attention(
            _gathered(query_PHD, bucket.tokens_BC, bucket.segments),
            _gathered(keys_RND, bucket.rows_BK, bucket.segments),
            _gathered(values_RND, bucket.rows_BK, bucket.segments),
            attn_mask=bucket.mask_B1CK.to(query_PHD.dtype),
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=True,  # half the time of repeating the keys and values first
        )
        outputs.append(found_BHCD.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, ragged.outputs_P).unsqueeze(0), None


def _gathered(rows: Tensor, index: Tensor, segments: int) -> Tensor:
    """Rows (R, heads, D) by a flat index of (segments, n): shape (segments, heads, n, D)."""
    return rows.index_select(0, index).unflatten(0, (segments, -1)).transpose(1, 2)


def bare_model(model: Any) -> Any:
    """The transformers model itself, out of the DeepSpeed engine around it."""
    return getattr(model, "module", model)


def packed_logits(model: Any, tokens_P: Tensor, call: Call, last: int) -> Tensor:
    """Logits of the `last` packed tokens: shape (last, V).

    Args:
        model: a transformers causal LM, or the DeepSpeed engine around it. It is
            switched to the attention `darts` at its first call.
        tokens_P: packed token ids.
        call: where they belong.
        last: at least 1.

    Raises: AttentionError if the model cannot be switched, or not all its layers took part.
    """
    bare = bare_model(model)
    if bare.config._attn_implementation != NAME:  # noqa: SLF001 - its only name
        bare.set_attn_implementation(NAME)
        if bare.config._attn_implementation != NAME:  # noqa: SLF001 - refused with a warning only
            raise AttentionError(f"{type(bare).__name__} cannot be given another attention")
    logits_1PV = model(
        input_ids=tokens_P.unsqueeze(0),
        position_ids=call.positions_1P,
        # Four dimensions: taken for a finished mask, so that none of P x P is built.
        attention_mask=torch.zeros((1, 1, 1, 1), device=tokens_P.device),
        use_cache=False,
        logits_to_keep=last,
        ragged=call,
    ).logits
    if len(call.layers) != bare.config.num_hidden_layers:
        raise AttentionError(
            f"{type(bare).__name__}: {len(call.layers)} of {bare.config.num_hidden_layers} layers "
            "took part in a packed call; its attention must be transformers' own"
        )
    return logits_1PV[0]


AttentionInterface.register(NAME, packed_attention)
# Without a mask function padded batches of the same model would get no mask, silently.
AttentionMaskInterface.register(NAME, sdpa_mask)
