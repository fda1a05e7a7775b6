"""LoRA: adapters alone are trained, engines get them merged, checkpoints hold nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from learner import lora
from learner.build import load_model
from learner.checkpoint.export import export_model
from learner.forward import lm_head
from learner.forward.micro_batches import pack_whole, response_logprobs
from learner.forward.packing_check import prove_packing
from learner.weights import WeightPublisher, checkpoint_tensors
from pipeline.config.schema import LoraConfig
from tests.learner.ranks import VOCABULARY, make_model

CPU = torch.device("cpu")
SECTION = LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "down_proj"))
TOKENS = ([5, 6, 7], [[8, 9, 10, 11], [12], [13, 14, 15, 16, 17]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_model(tmp_path_factory.mktemp("lora") / "model")


def adapted(base: Path, section: LoraConfig = SECTION, dtype: str = "float32") -> Any:
    """A model whose adapters are as if they had been trained."""
    model = load_model(base, CPU, dtype)
    lora.attach(model, section, base)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return model


@torch.no_grad()
def found(model: Any) -> torch.Tensor:
    return response_logprobs(model, pack_whole([TOKENS], CPU), 1.0)


@pytest.mark.parametrize("section", [SECTION, LoraConfig(rank=2)], ids=["named", "all-linear"])
def test_what_engines_get_has_the_logprobs_of_the_adapters_to_1e_5(
    base: Path, tmp_path: Path, section: LoraConfig
):
    model = adapted(base, section)
    before = {name: p.clone() for name, p in model.named_parameters()}
    manifest = WeightPublisher(tmp_path / "w", [3] * 40).publish_version(model, 1, {})
    plain = load_model(base, CPU)
    assert float((found(model) - found(plain)).abs().max()) > 0.1, "the adapters change nothing"
    tensors = load_file(Path(manifest.directory) / "model.safetensors")
    assert tensors.keys() == load_file(base / "model.safetensors").keys()
    plain.load_state_dict(tensors, strict=False)
    assert float((found(model) - found(plain)).abs().max()) < 1e-5
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_merged_weights_are_rounded_once(base: Path):
    model = adapted(base, dtype="bfloat16")
    tensors = checkpoint_tensors(model, torch.bfloat16)
    layer = model.model.layers[0].self_attn.q_proj
    delta = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float() * 2
    expected = (layer.base_layer.weight.float() + delta).bfloat16()
    assert torch.equal(tensors["model.layers.0.self_attn.q_proj.weight"], expected)


def test_layers_that_hold_their_weights_the_other_way_round_are_merged_too(tmp_path: Path):
    torch.manual_seed(1)
    shape = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path / "gpt2")
    model = adapted(tmp_path / "gpt2", LoraConfig(rank=2, targets=("c_attn",)))
    plain = load_model(tmp_path / "gpt2", CPU)
    plain.load_state_dict(checkpoint_tensors(model), strict=False)
    assert float((found(model) - found(plain)).abs().max()) < 1e-5


def test_adapters_alone_have_a_gradient_and_no_other_weight_moves(base: Path):
    model = adapted(base)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    response_logprobs(model, pack_whole([TOKENS], CPU), 1.0).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_reference_start_is_the_model_without_its_adapters_and_no_copy(base: Path):
    model = adapted(base)
    with_adapters = found(model)
    assert torch.equal(found(lora.Base(model)), found(load_model(base, CPU)))
    assert torch.equal(found(model), with_adapters)
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)


def test_reference_start_has_no_adapter_of_the_output_layer_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(1)
    shape = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64,
        tie_word_embeddings=False,
    )  # fmt: skip
    GPT2LMHeadModel(shape).save_pretrained(tmp_path / "gpt2")
    plain = found(load_model(tmp_path / "gpt2", CPU))
    model = adapted(tmp_path / "gpt2", LoraConfig(rank=2, targets=("lm_head",)))
    prove_packing(model, "auto")
    monkeypatch.setattr(lm_head, "LARGEST_LOGITS", 2 * VOCABULARY)  # in parts, as a large one's are
    assert float((found(lora.Base(model)) - plain).abs().max()) < 1e-5
    assert float((found(model) - plain).abs().max()) > 0.1


def test_checkpoint_holds_the_adapter_alone_and_peft_reads_it(base: Path, tmp_path: Path):
    from peft import PeftModel

    model = adapted(base)
    lora.save_adapter(model, tmp_path / "adapter")
    again = load_model(base, CPU)
    lora.attach(again, SECTION, base)
    lora.load_adapter(again, tmp_path / "adapter")
    assert torch.equal(found(again), found(model))
    stock = PeftModel.from_pretrained(load_model(base, CPU), tmp_path / "adapter")
    assert float((found(stock.merge_and_unload()) - found(model)).abs().max()) < 1e-5
    size = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size < (base / "model.safetensors").stat().st_size / 3


def test_export_writes_the_merged_model_and_the_adapter(base: Path, tmp_path: Path):
    model = adapted(base)
    (tmp_path / "checkpoint").mkdir()
    lora.save_adapter(model, tmp_path / "checkpoint" / "adapter")
    out = export_model(tmp_path / "checkpoint", tmp_path / "new" / "out")
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert float((found(merged) - found(model)).abs().max()) < 1e-5
    assert (out / "adapter" / "adapter_config.json").is_file()


def test_adapter_of_other_targets_is_refused_by_name(base: Path, tmp_path: Path):
    lora.save_adapter(adapted(base), tmp_path / "adapter")
    other = adapted(base, LoraConfig(rank=3, targets=("q_proj",)))
    with pytest.raises(lora.LoraError, match=r"down_proj.*resume with the learner.lora"):
        lora.load_adapter(other, tmp_path / "adapter")


@pytest.mark.parametrize(
    "targets,message",
    [
        (("embed_tokens",), "embed_tokens is a Embedding, which is not merged"),
        (("lm_head",), "lm_head shares its weights with the embedding"),
        (("nowhere",), "learner.lora.targets: Qwen3ForCausalLM: .*nowhere"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(
    base: Path, targets: tuple[str, ...], message: str
):
    with pytest.raises(lora.LoraError, match=message):
        adapted(base, LoraConfig(targets=targets))
