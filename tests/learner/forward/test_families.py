"""Architectures: packed logprobs equal the model's own, or the model is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from transformers.modeling_layers import GradientCheckpointingLayer

from learner.build import checkpoint_layers
from learner.forward.lm_head import packed_logprobs, token_logprobs
from learner.forward.micro_batches import pack_whole
from learner.forward.packed_attention import AttentionError, packed_logits, switch_attention
from learner.forward.packing_check import prove_packing
from learner.streaming.cached_forward import CachedForward

CPU = torch.device("cpu")
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
RESPONSES = [[20 + at for at in range(25)], [30, 4, 6], [44]]
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
HEADS: dict[str, Any] = {"head_dim": 12}
UNGROUPED: dict[str, Any] = {
    key: value for key, value in SHAPE.items() if key != "num_key_value_heads"
}
FAMILIES: dict[str, Any] = {
    "Qwen2": hf.Qwen2Config(**SHAPE),
    "Qwen2 with a window": hf.Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "Qwen3": hf.Qwen3Config(**SHAPE, **HEADS),
    "Qwen3 mixture": hf.Qwen3MoeConfig(
        **SHAPE, **HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "Llama": hf.LlamaConfig(**SHAPE),
    "Mistral": hf.MistralConfig(**SHAPE, sliding_window=7),
    "Gemma 2": hf.Gemma2Config(
        **SHAPE, head_dim=8, sliding_window=7, query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
    ),
    "Gemma 3": hf.Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=7, query_pre_attn_scalar=8),
    "Phi 3": hf.Phi3Config(**SHAPE),
    "OLMo 3": hf.Olmo3Config(**SHAPE, sliding_window=7),
    "Granite": hf.GraniteConfig(**SHAPE, attention_multiplier=0.3, logits_scaling=2.0),
    "GPT-2": hf.GPT2Config(**UNGROUPED),
    "OPT": hf.OPTConfig(**UNGROUPED, ffn_dim=64, word_embed_proj_dim=32),
}  # fmt: skip


def model_of(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A random model, its weights sharpened: small ones hide position errors."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model: Any = hf.AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" not in name:
                p.mul_(3)
    return model


def alone(model: Any) -> torch.Tensor:
    """Logprobs of each response by an unpadded forward of transformers' own attention."""
    found: list[torch.Tensor] = []
    for response in RESPONSES:
        tokens = torch.tensor([PROMPT + response])
        logits = model(input_ids=tokens).logits[0, len(PROMPT) - 1 : -1]
        found.append(token_logprobs(logits, tokens[0, len(PROMPT) :], 1.0))
    return torch.cat(found)


def packed(model: Any) -> torch.Tensor:
    call = pack_whole([(PROMPT, RESPONSES)], CPU)
    logits = packed_logits(model, call.tokens_P, call.call, len(call.taken_N))
    return token_logprobs(logits, call.taken_N, 1.0)


def gradient(model: Any, logprobs: torch.Tensor) -> torch.Tensor:
    logprobs.square().sum().backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(found)


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_logprobs_and_gradient_are_the_models_own(name: str):
    model = model_of(FAMILIES[name])
    expected = alone(model)
    expected_gradient = gradient(model, expected)
    prove_packing(model, "auto")
    found = packed(model)
    assert float((found - expected).detach().abs().max()) < 1e-4
    found_gradient = gradient(model, found)
    assert float((found_gradient - expected_gradient).norm() / expected_gradient.norm()) < 1e-5


@pytest.mark.parametrize("name", ["Qwen2", "Gemma 2", "GPT-2"])
def test_layers_that_are_computed_again_give_the_same_gradient(name: str):
    model = model_of(FAMILIES[name])
    expected = gradient(model, packed(model))
    checkpoint_layers(model)
    calls: list[int] = []
    first = next(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
    first.register_forward_hook(lambda *_: calls.append(1))
    found = packed(model)
    kept = len(calls)
    assert float((gradient(model, found) - expected).norm() / expected.norm()) < 1e-6
    assert kept == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["Mistral", "Gemma 2", "Gemma 3", "GPT-2"])
def test_cached_forward_keeps_to_windows_caps_and_learned_positions(name: str):
    model = model_of(FAMILIES[name])
    expected = alone(model)
    streamer = CachedForward(model, 1.0, kv_tokens=200)
    streamer.begin_group(1, PROMPT)
    found: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for begin in range(0, 25, 4):
        for at, response in enumerate(RESPONSES):
            if response[begin : begin + 4]:
                streamer.extend_trajectory(at, 1, response[begin : begin + 4])
        for piece in streamer.run_call(1000):
            found[piece.trajectory] += piece.logprobs.tolist()
    assert [*found[0], *found[1], *found[2]] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_every_kind_of_attention_computes_the_same(kind: str):
    model = model_of(FAMILIES["Mistral"])
    expected = alone(model)
    switch_attention(model, kind)
    assert float((packed(model) - expected).detach().abs().max()) < 1e-4
    assert float((alone(model) - expected).detach().abs().max()) < 1e-4  # padded calls too


@torch.no_grad()
def test_padded_calls_of_a_model_with_caps_are_its_own_after_the_switch():
    model = model_of(FAMILIES["Gemma 2"])
    expected = alone(model)
    switch_attention(model)
    assert float((alone(model) - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("name,largest", [("Qwen2", 10), ("GPT-2", 10), ("Gemma 2", 29)])
def test_large_vocabularies_are_done_in_parts_with_the_same_logprobs_and_gradient(
    name: str, largest: int, monkeypatch: pytest.MonkeyPatch
):
    model = model_of(FAMILIES[name])
    expected = alone(model)
    expected_gradient = gradient(model, expected)
    prove_packing(model, "auto")
    monkeypatch.setattr("learner.forward.lm_head.LARGEST_LOGITS", 10 * SHAPE["vocab_size"])
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _module, _given, found: rows.append(found.shape[-2])
    )
    call = pack_whole([(PROMPT, RESPONSES)], CPU)
    found, entropy = packed_logprobs(
        model, call.tokens_P, call.call, call.taken_N, 1.0, entropy=True
    )
    assert float((found - expected).detach().abs().max()) < 1e-4
    assert float((gradient(model, found) - expected_gradient).norm()) < 1e-5 * float(
        expected_gradient.norm()
    )
    assert max(rows) == largest  # caps that follow the output layer want its whole output
    assert entropy is not None
    assert entropy.shape == found.shape


# --- what cannot ----------------------------------------------------------------------------


def test_capped_scores_are_refused_for_sdpa_with_the_cure():
    with pytest.raises(AttentionError, match="caps its scores.*set learner.attention: auto"):
        prove_packing(model_of(FAMILIES["Gemma 2"]), "sdpa")


@pytest.mark.parametrize(
    "config,message",
    [
        (hf.BloomConfig(vocab_size=64, hidden_size=32, n_head=2), "Bloom.*does not use"),
        (hf.StableLmConfig(**SHAPE), "StableLm.*0 of 3 layers"),
        (hf.Llama4TextConfig(**SHAPE, head_dim=8, attention_chunk_size=8), "nats from its own"),
        (hf.GptOssConfig(**SHAPE, head_dim=8, num_local_experts=4), "layer 0 needs s_aux"),
        (hf.MambaConfig(**SHAPE), "Mamba.*cannot run packed sequences"),
    ],
    ids=["own attention", "own layers", "chunks", "sinks", "no attention"],
)  # fmt: skip
def test_what_packed_calls_cannot_run_is_refused_by_name(config: Any, message: str):
    with pytest.raises(AttentionError, match=message):
        prove_packing(model_of(config), "auto")


def test_window_that_only_a_mask_knows_is_refused():
    window: dict[str, Any] = {"sliding_window": 64, "max_window_layers": 1}
    model = model_of(hf.Qwen2Config(**SHAPE, **window, use_sliding_window=True))
    prove_packing(model, "auto")
    model.model.layers[1].self_attn.sliding_window = None
    with pytest.raises(AttentionError, match="layer 1 has a sliding window of 64 tokens"):
        prove_packing(model, "auto")


def test_bfloat16_passes_the_proof_and_a_wrong_model_does_not(monkeypatch: pytest.MonkeyPatch):
    prove_packing(model_of(FAMILIES["Qwen2"], torch.bfloat16), "auto")
    wrong = model_of(FAMILIES["Mistral"], torch.bfloat16)
    monkeypatch.setattr("learner.forward.packed_call.Bucket.mask", without_window)
    with pytest.raises(AttentionError, match="nats from its own"):
        prove_packing(wrong, "auto")


def without_window(bucket: Any, _window: Any, dtype: torch.dtype) -> torch.Tensor:
    keys = torch.arange(len(bucket.rows_BK) // bucket.segments)
    hidden = keys > bucket.positions_BC[..., None]
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf")).unsqueeze(1)
