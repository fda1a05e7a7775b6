"""What an environment appended is context: no loss, no gradient, no logprob of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.forward.micro_batches import counted_tokens, loss_batch, micro_batches
from learner.losses.dapo import Dapo
from learner.step.importance_weights import importance_weights
from learner.streaming.cached_forward import CachedForward
from learner.streaming.fixed_logprobs import align, member_logprobs
from learner.streaming.logprob_stream import ModelStream
from pipeline.wire.messages import (
    StreamedChunk,
    StreamedTokens,
    TrainGroup,
    TrainMember,
    floats,
    ints,
)
from tests.paths import MODEL

TEMPERATURE = 0.7
CPU = torch.device("cpu")


@pytest.fixture
def model() -> Any:
    torch.set_num_threads(1)
    found: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return found.eval()


def member_of(number: int, appended: tuple[tuple[int, int], ...], advantage: float) -> TrainMember:
    rng = np.random.default_rng(number)
    behaviour = rng.uniform(-3, -0.1, 12).astype("<f4")
    for first, count in appended:
        behaviour[first : first + count] = 0.0
    return TrainMember(
        trajectory=number,
        response=rng.integers(2, 20, 12).astype("<i4").tobytes(),
        behaviour=behaviour.tobytes(),
        appended=appended,
        reward=0.0,
        advantage=advantage,
    )


def group() -> TrainGroup:
    """Appended at the start, in the middle, twice, and not at all."""
    places: list[tuple[tuple[int, int], ...]] = [((0, 3),), ((4, 2),), ((2, 1), (7, 4)), ()]
    members = [member_of(i, place, 1.0 - 0.7 * i) for i, place in enumerate(places)]
    prompt = np.arange(3, 9).astype("<i4").tobytes()
    return TrainGroup(step=0, group=0, prompt=prompt, members=tuple(members))


def masked_by_hand(model: Any, given: TrainGroup) -> tuple[torch.Tensor, float]:
    """-sum of advantage x logprob over sampled tokens by one plain forward each, and their count:
    the surrogate's gradient where the ratio is 1."""
    loss, count = torch.zeros(()), 0.0
    prompt = ints(given.prompt).tolist()
    for member in given.members:
        response = ints(member.response).tolist()
        sampled = [True] * len(response)
        for first, length in member.appended:
            sampled[first : first + length] = [False] * length
        tokens = torch.tensor([prompt + response])
        logits = model(input_ids=tokens).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]
        loss = loss - member.advantage * logprobs[torch.tensor(sampled)].sum()
        count += sum(sampled)
    return loss, count


def gradient(model: Any) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


@pytest.mark.parametrize("cap", [4096, 30], ids=["one micro-batch", "several"])
def test_the_gradient_is_that_of_a_batch_masked_by_hand(model: Any, cap: int):
    given = group()
    expected_loss, count = masked_by_hand(model, given)
    expected_loss.backward()
    expected = gradient(model)
    assert counted_tokens(given) == count == 48 - 3 - 2 - 5
    mismatches = 0.0
    for batch in micro_batches([given], cap, CPU):
        found = loss_batch(model, batch, TEMPERATURE, entropy=True)
        loss, metrics = Dapo().loss(found)
        loss.backward()
        mismatches += metrics["mismatch"]
        outside = found.mask_BT == 0
        for values in (found.logprobs_BT, found.entropy_BT, found.behaviour_BT):
            assert values is not None
            assert bool((values[outside] == 0).all()), "an appended token has a figure of its own"
    ours = gradient(model)
    assert float((ours - expected).norm() / expected.norm()) < 1e-6
    with torch.no_grad():
        logprobs = member_logprobs(model, micro_batches([given], 4096, CPU), TEMPERATURE)
    by_hand = 0.0
    for member in given.members:
        kept = np.ones(12, dtype=bool)
        for first, length in member.appended:
            kept[first : first + length] = False
        behaviour = torch.tensor(floats(member.behaviour)[kept])
        by_hand += float((logprobs[member.trajectory] - behaviour).abs().sum())
    assert mismatches == pytest.approx(by_hand, rel=1e-4)


def test_logprobs_computed_ahead_and_weights_of_importance_leave_appended_tokens_out(model: Any):
    given = group()
    stream = ModelStream(CachedForward(model, TEMPERATURE, kv_tokens=4096))
    chunks = tuple(
        StreamedChunk(0, member.trajectory, at, member.response[4 * at : 4 * at + 20])
        for member in given.members
        for at in (0, 5)
    )
    stream.add_streamed(StreamedTokens(prompts={0: given.prompt}, chunks=chunks))
    while stream.pending_tokens:
        stream.run_call()
    ahead = stream.take_logprobs([given])
    [batch] = micro_batches([given], 4096, CPU)
    whole = member_logprobs(model, [batch], TEMPERATURE)
    for member in given.members:
        assert len(ahead[member.trajectory]) == member.sampled_tokens
        torch.testing.assert_close(
            ahead[member.trajectory], whole[member.trajectory], atol=1e-4, rtol=0
        )
    old_BT = align(ahead, batch.trajectories, batch.mask_BT, torch.zeros_like(batch.mask_BT))
    behaviour_BT = batch.behaviour_BT.where(batch.mask_BT > 0, old_BT)
    weight_BT, _ = importance_weights(old_BT, behaviour_BT, mode="truncate", cap=2.0)
    assert bool((weight_BT[batch.mask_BT == 0] == 1).all())
