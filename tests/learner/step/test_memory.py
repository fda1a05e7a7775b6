"""Memory runs out in a cached forward: what was computed ahead is lost, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.forward.micro_batches import micro_batches
from learner.losses.dapo import Dapo
from learner.step.passes import Passes
from learner.streaming.cached_forward import CachedForward
from learner.streaming.fixed_logprobs import ByTrajectory, member_logprobs
from learner.streaming.logprob_stream import LogprobStream, ModelStream
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import StreamedChunk, StreamedTokens, TrainGroup, TrainMember
from tests.paths import MODEL

TEMPERATURE = 0.7
CPU = torch.device("cpu")
MEMBERS = 4
LENGTH = 30


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    found: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return found.eval()


@pytest.fixture
def group() -> TrainGroup:
    rng = np.random.default_rng(5)
    members = tuple(
        TrainMember(
            trajectory=number,
            response=rng.integers(2, 20, LENGTH).astype("<i4").tobytes(),
            behaviour=np.zeros(LENGTH, "<f4").tobytes(),
            reward=1.0,
            advantage=0.5,
        )
        for number in range(MEMBERS)
    )
    return TrainGroup(step=0, group=0, prompt=np.array([3, 4, 5], "<i4").tobytes(), members=members)


def streamed(group: TrainGroup, first: int, end: int) -> StreamedTokens:
    """Tokens `first` to `end` of every member."""
    chunks = tuple(
        StreamedChunk(0, member.trajectory, first, member.response[4 * first : 4 * end])
        for member in group.members
    )
    return StreamedTokens(prompts={0: group.prompt}, chunks=chunks)


@contextmanager
def memory_of(model: Any, tokens: int) -> Iterator[list[int]]:
    """Calls over more tokens fail; yields the sizes of all that were tried."""
    sizes: list[int] = []

    def begin(_module: Any, _given: Any, named: dict[str, Any]) -> None:
        sizes.append(named["input_ids"].numel())
        if sizes[-1] > tokens:
            raise torch.OutOfMemoryError("the test's")

    hook = model.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        yield sizes
    finally:
        hook.remove()


def same(found: ByTrajectory, expected: ByTrajectory) -> bool:
    assert set(found) == set(expected)
    return all(torch.allclose(found[name], expected[name], atol=1e-4) for name in expected)


def whole(model: Any, group: TrainGroup) -> ByTrajectory:
    return member_logprobs(model, micro_batches([group], 4096, CPU), TEMPERATURE)


@pytest.mark.fault("out of memory in the forward of streamed tokens", part="learner", by="direct")
def test_streamed_tokens_that_do_not_fit_are_computed_when_their_group_arrives(
    model: Any, group: TrainGroup
) -> None:
    """Promise: the rank goes on, the group's logprobs are those of a whole forward.
    Bound: what was computed ahead is lost.
    """
    stream = ModelStream(CachedForward(model, TEMPERATURE, 10_000))
    ahead = LogprobStream(stream, None)
    ahead.add_streamed(streamed(group, 0, 5))
    ahead.run_calls()
    with memory_of(model, 10) as sizes:
        ahead.add_streamed(streamed(group, 5, 20))
        ahead.run_calls()
    assert max(sizes) > 10
    assert ahead.pending_tokens == 0, "the same call would fail for ever"
    ahead.add_streamed(streamed(group, 20, LENGTH))
    assert same(stream.take_logprobs([group]), whole(model, group))


def test_logprobs_that_do_not_fit_into_the_cached_forward_are_computed_without_it(
    model: Any, group: TrainGroup
) -> None:
    expected = whole(model, group)
    stream = ModelStream(CachedForward(model, TEMPERATURE, 10_000))
    zero: Any = SimpleNamespace(device=CPU, collective_passes=False)
    passes = Passes(
        zero,
        Dapo(),
        LearnerConfig(tokens_per_micro_batch=60),
        temperature=TEMPERATURE,
        reference=model,
        reference_stream=stream,
    )
    stream.add_streamed(streamed(group, 0, 10))
    with memory_of(model, 60) as sizes:  # one call over all members would need 112
        passes.compute_reference([group])
    assert sizes[0] > 60 >= max(sizes[1:])
    assert same(passes._reference, expected)
    assert passes.limit.tokens == 60
    stream.add_streamed(streamed(group, 10, 20))  # a straggler of what was dropped
    assert stream.pending_tokens == 0


def test_other_errors_of_a_cached_forward_are_not_swallowed(model: Any, group: TrainGroup) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    stream = ModelStream(CachedForward(model, TEMPERATURE, 10_000))
    stream.add_streamed(streamed(group, 0, 10))
    hook = model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes"):
        stream.run_call()
    hook.remove()
