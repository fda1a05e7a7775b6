"""Computes attention of packed calls, for any transformers model that passes keywords on.

Turns a model and a `PackedCall` into logits without a padded token. Supports sliding
windows and capped scores; a layer that needs anything else raises. Invariant: a call
without `ragged` gives bit for bit what transformers' own attention gives, so a model that
was switched once can be used everywhere.

Axes: P packed tokens, H heads, N heads of keys and values, D head dimension, V vocabulary;
in a bucket B segments, C most queries, K most keys.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from learner.forward.packed_call import PackedCall

NAME = "darts"
KINDS = {
    NAME: "auto",
    f"{NAME}_sdpa": "sdpa",
    f"{NAME}_eager": "eager",
}
"""Names that a model can be switched to -> how the attention of its layers is computed."""
_CHANGES_ATTENTION = ("s_aux", "position_bias", "head_mask", "chunk_size")
"""Keywords of other models' attention that are not supported here."""


class AttentionError(Exception):
    """The model's attention cannot run packed calls."""


def switch_attention(model: Any, kind: str = "auto") -> None:
    """Give a model, or the DeepSpeed engine around it, the attention of packed calls.

    Args:
        kind: `learner.attention`.

    Raises: AttentionError if the model cannot be switched.
    """
    bare = bare_model(model)
    [name] = [name for name, found in KINDS.items() if found == kind]
    bare.set_attn_implementation(name)
    if bare.config._attn_implementation != name:  # noqa: SLF001 - refused with a warning only
        raise AttentionError(
            f"{type(bare).__name__} does not use transformers' attention interface, so it "
            "cannot run packed sequences; take a model of another architecture"
        )


def packed_attention(
    module: Any,
    query_1HPD: Tensor,
    key_1NPD: Tensor,
    value_1NPD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    ragged: PackedCall | None = None,
    kind: str = "auto",
    sliding_window: int | None = None,
    softcap: float | None = None,
    **named: Any,
) -> tuple[Tensor, None]:
    """The attention function `darts`: returns shape (1, P, H, D), and no weights.

    Args:
        sliding_window: keys that a query of the layer sees, its own included.
        softcap: scores are softcap * tanh(score / softcap).

    Raises: AttentionError if the layer needs an unsupported kind of attention.
    """
    eager = kind == "eager" or (kind == "auto" and softcap is not None)
    if softcap is not None and not eager:
        raise AttentionError(
            f"layer {module.layer_idx} caps its scores (softcap {softcap:g}), which sdpa cannot: "
            "set learner.attention: auto"
        )
    if ragged is None:
        return _padded(
            module, query_1HPD, key_1NPD, value_1NPD, attention_mask, dropout, scaling, softcap,
            eager=eager, **named,
        )  # fmt: skip
    if unknown := [name for name in _CHANGES_ATTENTION if named.get(name) is not None]:
        raise AttentionError(f"layer {module.layer_idx} needs {unknown[0]}: packed calls lack it")
    ragged.windows[module.layer_idx] = sliding_window
    query_PHD = query_1HPD[0].transpose(0, 1)
    keys_RND, values_RND = key_1NPD[0].transpose(0, 1), value_1NPD[0].transpose(0, 1)
    if ragged.pool is not None:
        assert ragged.writes_P is not None
        keys_RND, values_RND = ragged.pool.write_rows(
            module.layer_idx, ragged.writes_P, keys_RND, values_RND
        )
    scale = scaling_of(query_PHD, scaling)
    outputs: list[Tensor] = []
    for bucket in ragged.buckets:
        compute = eager_scores if eager else fused_scores
        found_BHCD = compute(
            _gathered(query_PHD, bucket.tokens_BC, bucket.segments),
            _gathered(keys_RND, bucket.rows_BK, bucket.segments),
            _gathered(values_RND, bucket.rows_BK, bucket.segments),
            bucket.mask(sliding_window, query_PHD.dtype),
            dropout,
            scale,
            softcap,
        )
        outputs.append(found_BHCD.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, ragged.outputs_P).unsqueeze(0), None


def scaling_of(queries: Tensor, given: float | None) -> float:
    """Return the factor of the scores: the given one, else 1 / sqrt(D)."""
    return queries.shape[-1] ** -0.5 if given is None else given


def fused_scores(
    query_BHCD: Tensor,
    key_BNKD: Tensor,
    value_BNKD: Tensor,
    mask_B1CK: Tensor,
    dropout: float,
    scaling: float,
    softcap: float | None = None,
) -> Tensor:
    """Compute attention by torch's fused kernels: shape (B, H, C, D)."""
    assert softcap is None
    grouped = query_BHCD.shape[1] != key_BNKD.shape[1]
    if grouped and query_BHCD.is_cuda:
        # With a mask and grouped heads the GPU has no fused kernel: the plain one takes
        # B x H x C x K of memory.
        repeats = query_BHCD.shape[1] // key_BNKD.shape[1]
        key_BNKD = repeat_kv(key_BNKD, repeats)
        value_BNKD = repeat_kv(value_BNKD, repeats)
        grouped = False
    return scaled_dot_product_attention(
        query_BHCD,
        key_BNKD,
        value_BNKD,
        attn_mask=mask_B1CK,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=grouped,  # on a CPU twice as fast as repeating the keys and values
    )


def eager_scores(
    query_BHCD: Tensor,
    key_BNKD: Tensor,
    value_BNKD: Tensor,
    mask_B1CK: Tensor,
    dropout: float,
    scaling: float,
    softcap: float | None = None,
) -> Tensor:
    """Compute attention by matrix products, softmax in float32: shape (B, H, C, D)."""
    repeats = query_BHCD.shape[1] // key_BNKD.shape[1]
    key_BHKD = repeat_kv(key_BNKD, repeats)
    value_BHKD = repeat_kv(value_BNKD, repeats)
    scores_BHCK = query_BHCD @ key_BHKD.transpose(2, 3) * scaling
    if softcap is not None:
        scores_BHCK = softcap * torch.tanh(scores_BHCK / softcap)
    shares_BHCK = (scores_BHCK + mask_B1CK).softmax(-1, dtype=torch.float32).to(query_BHCD.dtype)
    return torch.dropout(shares_BHCK, dropout, train=dropout > 0) @ value_BHKD


def _padded(
    module: Any,
    query_BHTD: Tensor,
    key_BNTD: Tensor,
    value_BNTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    *,
    eager: bool,
    **named: Any,
) -> tuple[Tensor, None]:
    """Compute an ordinary padded batch: shape (B, T, H, D)."""
    if not eager:
        return sdpa_attention_forward(
            module, query_BHTD, key_BNTD, value_BNTD, attention_mask, dropout, scaling, **named
        )
    if attention_mask is None:  # sdpa's mask function makes no mask if only causality is needed
        shape = (query_BHTD.shape[2], key_BNTD.shape[2])
        attention_mask = torch.ones(shape, dtype=torch.bool, device=query_BHTD.device).tril(
            shape[1] - shape[0]
        )
    mask = torch.zeros_like(attention_mask, dtype=query_BHTD.dtype)
    mask = mask.masked_fill_(~attention_mask, float("-inf"))
    scale = scaling_of(query_BHTD, scaling)
    found_BHTD = eager_scores(query_BHTD, key_BNTD, value_BNTD, mask, dropout, scale, softcap)
    return found_BHTD.transpose(1, 2).contiguous(), None


def _gathered(rows: Tensor, index: Tensor, segments: int) -> Tensor:
    """Gather rows (R, heads, D) by a flat (segments, n) index: shape (segments, heads, n, D)."""
    return rows.index_select(0, index).unflatten(0, (segments, -1)).transpose(1, 2)


def bare_model(model: Any) -> Any:
    """Return the transformers model, without the DeepSpeed engine around it."""
    return getattr(model, "module", model)


def packed_logits(model: Any, tokens_P: Tensor, call: PackedCall, last: int) -> Tensor:
    """Compute the logits of the `last` packed tokens: shape (last, V).

    Args:
        model: a transformers causal LM, or the DeepSpeed engine around it. It is
            switched to the attention `darts` at its first call.
        tokens_P: packed token ids.
        call: how they are packed.
        last: at least 1.

    Raises: AttentionError if the model cannot be switched, or not all its layers took part.
    """
    bare = bare_model(model)
    if bare.config._attn_implementation not in KINDS:  # noqa: SLF001 - its only name
        switch_attention(bare)
    logits_1PV = model(
        input_ids=tokens_P.unsqueeze(0),
        position_ids=call.positions_1P,
        # Four dimensions: taken as a finished mask, so that none of P x P is built.
        attention_mask=torch.zeros((1, 1, 1, 1), device=tokens_P.device),
        use_cache=False,
        logits_to_keep=last,
        ragged=call,
    ).logits
    if len(call.windows) != bare.config.num_hidden_layers:
        raise AttentionError(
            f"{type(bare).__name__}: {len(call.windows)} of {bare.config.num_hidden_layers} layers "
            "took part in a packed call; the others do not use transformers' attention interface"
        )
    return logits_1PV[0]


for _name, _kind in KINDS.items():
    AttentionInterface.register(_name, partial(packed_attention, kind=_kind))
    # Without a mask function, padded batches of the same model would silently get no mask.
    AttentionMaskInterface.register(_name, sdpa_mask)
