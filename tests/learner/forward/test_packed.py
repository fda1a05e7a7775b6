"""Packed, prefix-shared passes: exact logprobs and gradients, for any split into calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
)

from learner.forward.micro_batches import loss_batch, micro_batches, pack_whole, response_logprobs
from learner.forward.packed_attention import NAME, AttentionError, packed_logits
from learner.forward.packed_call import in_buckets
from pipeline.wire.messages import TrainGroup, TrainMember, ints
from tests.learner.ranks import group_of, make_model

CPU = torch.device("cpu")
TEMPERATURES = [1.0, 0.7]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_model(tmp_path_factory.mktemp("packed") / "model")


@pytest.fixture
def model(directory: Path) -> Any:
    """Sharpened weights, with stock attention until something packs."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def shortest() -> TrainGroup:
    """A prompt of one token, which shares nothing, and a response of one token."""

    def member(trajectory: int, tokens: list[int]) -> TrainMember:
        return TrainMember(
            trajectory=trajectory,
            response=np.array(tokens, dtype="<i4").tobytes(),
            behaviour=np.zeros(len(tokens), dtype="<f4").tobytes(),
            reward=0.0,
            advantage=1.0,
        )

    prompt = np.array([5], dtype="<i4").tobytes()
    members = (member(9901, [7]), member(9902, [3, 4, 5]))
    return TrainGroup(step=0, group=99, prompt=prompt, members=members)


def ragged_groups() -> list[TrainGroup]:
    return [*(group_of(number, weight=1.0) for number in range(1, 7)), shortest()]


def alone(model: Any, group: TrainGroup, member: TrainMember, temperature: float) -> torch.Tensor:
    """Logprobs of one response by one unpadded forward of stock attention: shape (tokens,)."""
    prompt, response = ints(group.prompt), ints(member.response)
    tokens = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
    logits = model(input_ids=tokens[None]).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, tokens[len(prompt) :, None])[:, 0]


def gradient(model: Any) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("cap", [4096, 150, 40], ids=["one call", "several", "groups split"])
def test_logprobs_and_gradient_equal_one_unpadded_forward_each(
    model: Any, cap: int, temperature: float
):
    groups = ragged_groups()
    expected = {
        m.trajectory: alone(model, g, m, temperature) * m.advantage
        for g in groups
        for m in g.members
    }
    torch.cat(list(expected.values())).square().sum().backward()
    expected_gradient = gradient(model)

    batches = micro_batches(groups, cap, CPU)
    found: dict[int, torch.Tensor] = {}
    for batch in batches:
        full = loss_batch(model, batch, temperature)
        weighed_BT = full.logprobs_BT * full.advantages_B[:, None]
        (weighed_BT * full.mask_BT).square().sum().backward()
        for row, trajectory in enumerate(batch.trajectories):
            found[trajectory] = weighed_BT[row, full.mask_BT[row] > 0].detach()
    assert sorted(found) == sorted(expected)
    for trajectory, values in expected.items():
        assert float((found[trajectory] - values.detach()).abs().max()) < 1e-5
    assert float((gradient(model) - expected_gradient).norm() / expected_gradient.norm()) < 1e-5
    assert (len(batches) == 1) == (cap == 4096)


@torch.no_grad()
def test_entropy_is_that_of_the_distribution_each_token_was_drawn_from(model: Any):
    group = group_of(1, weight=1.0)
    [batch] = micro_batches([group], 4096, CPU)
    assert loss_batch(model, batch, 0.7).entropy_BT is None
    found_BT = loss_batch(model, batch, 0.7, entropy=True).entropy_BT
    assert found_BT is not None
    for row, member in enumerate(group.members):
        prompt, response = ints(group.prompt).tolist(), ints(member.response).tolist()
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = torch.distributions.Categorical(logits=logits / 0.7).entropy()
        assert found_BT[row, batch.mask_BT[row] > 0] == pytest.approx(expected, abs=1e-4)
    assert float(found_BT[batch.mask_BT == 0].abs().sum()) == 0


def test_prompt_is_fed_once_for_its_group_and_no_token_is_padding():
    [batch] = micro_batches([group_of(1, weight=1.0), group_of(2, weight=1.0)], 4096, CPU)
    groups = [group_of(1), group_of(2)]
    fed = sum(len(ints(g.prompt)) - 1 for g in groups) + sum(
        len(m.response) // 4 for g in groups for m in g.members
    )
    assert batch.packed.tokens_P.numel() == fed


@torch.no_grad()
def test_one_temperature_is_not_another(model: Any):
    packed = pack_whole([([5, 6], [[7, 8, 9]])], CPU)
    first, second = (response_logprobs(model, packed, temperature) for temperature in TEMPERATURES)
    assert float((first - second).abs().max()) > 0.1


def test_gradient_is_the_same_with_checkpointed_activations(model: Any):
    [batch] = micro_batches(ragged_groups(), 4096, CPU)
    response_logprobs(model, batch.packed, 1.0).square().sum().backward()
    expected = gradient(model)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    response_logprobs(model, batch.packed, 1.0).square().sum().backward()
    assert float((gradient(model) - expected).norm() / expected.norm()) < 1e-5


@torch.no_grad()
def test_padded_batches_keep_their_mask_on_a_model_that_packs(model: Any):
    tokens = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    expected = model(input_ids=tokens, attention_mask=mask).logits
    response_logprobs(model, pack_whole([([5], [[6]])], CPU), 1.0)
    assert model.config._attn_implementation == NAME
    assert torch.equal(model(input_ids=tokens, attention_mask=mask).logits, expected)
    assert float((model(input_ids=tokens).logits - expected).abs().max()) > 0.1, "masks nothing"


def test_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="empty prompt"):
        pack_whole([([], [[1, 2]])], CPU)


def test_behaviour_of_another_length_is_refused_by_trajectory():
    short = np.zeros(1, dtype="<f4").tobytes()
    group = group_of(1, members=2, behaviour=short, weight=1.0, response=bytes(8))
    with pytest.raises(ValueError, match="trajectory 100: 2 tokens, 1 behaviour logprobs"):
        micro_batches([group], 4096, CPU)


# --- models that cannot --------------------------------------------------------------------


def test_model_with_an_attention_of_its_own_is_refused():
    bloom = BloomForCausalLM(BloomConfig(vocab_size=24, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(AttentionError, match="BloomForCausalLM cannot be given another"):
        response_logprobs(bloom, pack_whole([([5], [[6]])], CPU), 1.0)


def test_model_whose_layers_do_not_all_take_part_is_refused(model: Any):
    packed = pack_whole([([5], [[6]])], CPU)
    model.config.num_hidden_layers = 3
    model.model.layers.append(torch.nn.Module())
    model.model.layers[2].forward = lambda hidden_states, **_: hidden_states  # type: ignore[method-assign]
    model.config.layer_types = ["full_attention"] * 3
    with pytest.raises(AttentionError, match="2 of 3 layers"):
        packed_logits(model, packed.tokens_P, packed.call, 1)


# --- buckets -------------------------------------------------------------------------------


def padded_pairs(sizes: Sequence[tuple[int, int]], run: Sequence[int]) -> int:
    return len(run) * max(sizes[i][0] for i in run) * max(sizes[i][1] for i in run)


def test_buckets_hold_every_segment_once_and_waste_less_than_their_price():
    rng = np.random.default_rng(3)
    for _ in range(200):
        queries = rng.integers(1, 60, size=rng.integers(1, 40))
        sizes = [(int(count), int(count + rng.integers(0, 200))) for count in queries]
        runs = in_buckets(sizes, price=500)
        assert sorted(index for run in runs for index in run) == list(range(len(sizes)))
        for run in runs:
            wasted = padded_pairs(sizes, run) - sum(sizes[i][0] * sizes[i][1] for i in run)
            assert wasted <= 500


def test_equal_segments_share_a_bucket_and_a_long_one_stands_alone():
    assert in_buckets([(16, 40)] * 50) == [list(range(50))]
    assert in_buckets([(20, 30), (400, 430), (20, 30)]) == [[1], [0, 2]]
