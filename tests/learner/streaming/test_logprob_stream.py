"""Logprobs computed ahead are those of whole forwards, whatever the hints left out."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from learner.forward.micro_batches import micro_batches
from learner.streaming.cached_forward import CachedForward
from learner.streaming.fixed_logprobs import member_logprobs
from learner.streaming.logprob_stream import LogprobStream, ModelStream
from pipeline.wire.messages import StreamedChunk, StreamedTokens, TrainGroup, TrainMember
from tests.paths import MODEL

TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def model() -> Any:
    """The shipped model with sharper weights: errors of position show."""
    torch.set_num_threads(1)
    found: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with torch.no_grad():
        for parameter in found.model.layers.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0)
    return found.eval()


def group_of(rng: random.Random, number: int, members: int = 4) -> TrainGroup:
    def draw(count: int) -> bytes:
        return np.array([rng.randrange(2, 20) for _ in range(count)], "<i4").tobytes()

    def member(index: int) -> TrainMember:
        count = rng.randint(1, 60)
        return TrainMember(
            trajectory=100 * number + index,
            response=draw(count),
            behaviour=np.zeros(count, "<f4").tobytes(),
            reward=1.0,
            advantage=0.5,
            weight=float(index != 3),  # the last one is not trained on
        )

    prompt = draw(rng.randint(1, 12))
    found = tuple(member(index) for index in range(members))
    return TrainGroup(step=0, group=number, prompt=prompt, members=found)


def hints_of(rng: random.Random, groups: list[TrainGroup], share: float) -> list[StreamedTokens]:
    """Chunks of random sizes, groups interleaved; of some trajectories only a beginning."""
    chunks: list[tuple[float, StreamedChunk]] = []
    for group in groups:
        for member in group.members:
            total = len(member.response) // 4
            end, at, when = round(total * rng.uniform(share, 1.0)), 0, 0.0
            while at < end:
                count = min(rng.randint(1, 16), end - at)
                tokens = member.response[4 * at : 4 * (at + count)]
                when += rng.random()
                chunks.append((when, StreamedChunk(group.group, member.trajectory, at, tokens)))
                at += count
    prompts = {group.group: group.prompt for group in groups}
    ordered = [chunk for _, chunk in sorted(chunks, key=lambda pair: pair[0])]
    return [
        StreamedTokens(prompts=prompts, chunks=tuple(ordered[at : at + 5]))
        for at in range(0, len(ordered), 5)
    ]


def whole(model: Any, groups: list[TrainGroup]) -> dict[int, torch.Tensor]:
    batches = micro_batches(groups, 4096, torch.device("cpu"))
    return member_logprobs(model, batches, TEMPERATURE)


def close(found: dict[int, torch.Tensor], expected: dict[int, torch.Tensor]) -> float:
    assert set(found) == set(expected)
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0], ids=["little", "most", "all"])
@pytest.mark.parametrize("kv_tokens", [100_000, 150], ids=["room", "crowded"])
@pytest.mark.parametrize("seed", range(3))
def test_what_was_hinted_and_what_was_not_give_the_logprobs_of_a_whole_forward(
    model: Any, seed: int, kv_tokens: int, share: float
) -> None:
    rng = random.Random(seed)
    groups = [group_of(rng, number) for number in range(3)]
    stream = ModelStream(CachedForward(model, TEMPERATURE, kv_tokens))
    ahead = LogprobStream(stream, None)
    for hints in hints_of(rng, groups, share):
        ahead.add_streamed(hints)
        if rng.random() < 0.5:
            ahead.run_calls()
    if share == 1.0 and kv_tokens == 100_000:
        while ahead.pending_tokens:
            ahead.run_calls()
    found = stream.take_logprobs(groups[:2]) | stream.take_logprobs(groups[2:])
    assert close(found, whole(model, groups)) < 1e-4


def test_a_cleared_stream_forgets_and_holes_after_it_are_filled(model: Any) -> None:
    rng = random.Random(7)
    group = group_of(rng, 0)
    stream = ModelStream(CachedForward(model, TEMPERATURE, 10_000))
    pieces = hints_of(rng, [group], 1.0)
    middle = len(pieces) // 2
    for hints in pieces[:middle]:
        stream.add_streamed(hints)
        stream.run_call()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(0.5)  # a new version of the weights
    stream.clear_stream()
    for hints in pieces[middle:]:
        stream.add_streamed(hints)
        stream.run_call()
    assert close(stream.take_logprobs([group]), whole(model, [group])) < 1e-4


def test_trajectories_that_are_gone_leave_no_row_behind(model: Any) -> None:
    rng = random.Random(3)
    groups = [group_of(rng, number) for number in range(2)]
    streamer = CachedForward(model, TEMPERATURE, 10_000)
    stream = ModelStream(streamer)
    for hints in hints_of(rng, groups, 1.0):
        stream.add_streamed(hints)
        stream.run_call()
    assert streamer.statistics()["cached"] > 0
    stream.take_logprobs(groups[:1])
    stream.add_streamed(
        StreamedTokens(prompts={}, gone=tuple(m.trajectory for m in groups[1].members))
    )
    assert streamer.statistics()["cached"] == 0


def test_a_model_that_does_not_say_how_wide_its_heads_are_shares_its_width_among_them() -> None:
    config = Qwen2Config(
        vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    assert getattr(config, "head_dim", None) is None
    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(config).eval()
    groups = [group_of(random.Random(1), 0)]
    stream = ModelStream(CachedForward(model, TEMPERATURE, kv_tokens=4096))
    found = stream.take_logprobs(groups)
    assert close(found, whole(model, groups)) < 1e-4
