"""Members of one group with their own prompts: packed by prompt, exact whatever shares a call."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.forward.micro_batches import by_prompt, loss_batch, micro_batches
from learner.schedule import tokens_of
from learner.step.close_version import VersionCloser
from learner.streaming.cached_forward import CachedForward
from learner.streaming.logprob_stream import ModelStream
from pipeline.wire.messages import CloseVersion, StreamedChunk, StreamedTokens, TrainGroup, ints
from tests.learner.ranks import group_of, make_model

CPU = torch.device("cpu")
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    directory = make_model(tmp_path_factory.mktemp("own") / "model")
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def with_hints(number: int, hints: int = 2) -> TrainGroup:
    """A group of six; each second member has one of so many hints behind the prompt."""
    rng = random.Random(number)
    group = group_of(number, members=6, weight=1.0)
    texts = [
        bytes(np.array([rng.randrange(2, 20) for _ in range(3 + n)], "<i4")) for n in range(hints)
    ]
    members = [
        msgspec.structs.replace(m, prompt=group.prompt + texts[n // 2 % hints]) if n % 2 else m
        for n, m in enumerate(group.members)
    ]
    return msgspec.structs.replace(group, members=tuple(members))


@torch.no_grad()
def alone(model: Any, groups: list[TrainGroup]) -> dict[int, torch.Tensor]:
    """Logprobs of each response by a forward of its own prompt and nothing else."""
    found: dict[int, torch.Tensor] = {}
    for group in groups:
        for member in group.members:
            prompt, response = ints(group.prompt_of(member)), ints(member.response)
            tokens = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
            logits = model(input_ids=tokens[None]).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
            wanted = tokens[len(prompt) :, None]
            found[member.trajectory] = logits.log_softmax(-1).gather(-1, wanted)[:, 0]
    return found


def worst(found: dict[int, Any], expected: dict[int, torch.Tensor]) -> float:
    assert sorted(found) == sorted(expected)
    return max(
        float((torch.as_tensor(found[name]) - expected[name]).abs().max()) for name in expected
    )


@pytest.mark.parametrize("whole", [False, True], ids=["split", "whole groups"])
@pytest.mark.parametrize("cap", [4096, 60])
@torch.no_grad()
def test_logprobs_are_those_after_the_members_own_prompt(model: Any, cap: int, whole: bool) -> None:
    groups = [with_hints(1), with_hints(2, hints=3), group_of(3, weight=1.0)]
    expected = alone(model, groups)
    found: dict[int, torch.Tensor] = {}
    for batch in micro_batches(groups, cap, CPU, whole_groups=whole):
        full = loss_batch(model, batch, TEMPERATURE)
        for row, trajectory in enumerate(batch.trajectories):
            found[trajectory] = full.logprobs_BT[row, full.mask_BT[row] > 0]
    assert worst(found, expected) < 1e-5


def test_a_prompt_is_fed_once_for_those_that_share_it() -> None:
    group = with_hints(4)
    [batch] = micro_batches([group], 4096, CPU)
    prompts = {group.prompt_of(member) for member in group.members}
    assert len(prompts) == len(by_prompt(group)) == 3
    responses = sum(len(member.response) // 4 for member in group.members)
    assert batch.packed.tokens == sum(len(prompt) // 4 - 1 for prompt in prompts) + responses
    assert tokens_of(group) == sum(len(prompt) // 4 for prompt in prompts) + responses


def test_the_tokens_of_a_hint_are_in_no_row() -> None:
    group = with_hints(5)
    [batch] = micro_batches([group], 4096, CPU)
    lengths = {m.trajectory: len(m.response) // 4 for m in group.members}
    rows = zip(batch.trajectories, batch.mask_BT.sum(1).tolist(), strict=True)
    assert {trajectory: int(count) for trajectory, count in rows} == lengths


@pytest.mark.parametrize("kv_tokens", [100_000, 80], ids=["room", "crowded"])
def test_streamed_logprobs_are_those_after_the_members_own_prompt(
    model: Any, kv_tokens: int
) -> None:
    groups = [with_hints(6), with_hints(7, hints=1)]
    stream = ModelStream(CachedForward(model, TEMPERATURE, kv_tokens))
    for group in groups:
        chunks = tuple(
            StreamedChunk(group.group, m.trajectory, 0, m.response[: len(m.response) // 8 * 4])
            for m in group.members
        )
        own = {m.trajectory: m.prompt for m in group.members if m.prompt}
        stream.add_streamed(
            StreamedTokens(prompts={group.group: group.prompt}, chunks=chunks, own=own)
        )
    while stream.pending_tokens:
        stream.run_call()
    assert worst(stream.take_logprobs(groups), alone(model, groups)) < 1e-4


def test_a_version_is_closed_after_the_members_own_prompt(model: Any) -> None:
    group = with_hints(8)
    stream = ModelStream(CachedForward(model, TEMPERATURE, 100_000))
    order = CloseVersion(
        version=3,
        prompts={group.group: group.prompt},
        chunks=tuple(
            StreamedChunk(group.group, m.trajectory, 0, m.response) for m in group.members
        ),
        own={m.trajectory: m.prompt for m in group.members if m.prompt},
    )

    class NoPasses:
        def whole_logprobs(self, groups: list[TrainGroup], stop: Any) -> list[Any]:
            assert not groups, "the stream has all of them"
            return []

    closer = VersionCloser(NoPasses(), stream)  # type: ignore[arg-type]
    found: dict[int, Any] = {}
    for pieces in closer.close(order, lambda: False):
        for piece in pieces:
            values = np.frombuffer(piece.logprobs, "<f4")
            found[piece.trajectory] = np.concatenate(
                [found.get(piece.trajectory, values[:0]), values]
            )
    assert worst(found, alone(model, [group])) < 1e-4
