"""The cached forward: chunks give the logprobs of whole forwards, whatever happened between."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.forward.kv_pool import KvPool, PoolFull
from learner.streaming.cached_forward import CachedForward, StreamedLogprobs, StreamError
from tests.learner.ranks import VOCABULARY, make_model

TEMPERATURE = 0.7
CPU = torch.device("cpu")
Text = dict[int, tuple[int, list[int]]]
"""Trajectory -> its group, and its response."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_model(tmp_path_factory.mktemp("streamer") / "model")


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    """Sharpened weights: a position that is off by one shows as about 1."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


class Case:
    """Groups with prompts of 1 to 12 tokens, ragged responses, and a streamer of them."""

    def __init__(self, model: Any, seed: int, *, kv_tokens: int = 5000, entropy: bool = False):
        self.rng = random.Random(seed)
        self.model = model
        self.streamer = CachedForward(model, TEMPERATURE, kv_tokens, entropy=entropy)
        self.prompts: dict[int, list[int]] = {}
        self.text: Text = {}
        self.found: dict[int, list[float]] = {}
        self.entropies: dict[int, list[float]] = {}
        for group in range(3):
            self.begin(group, members=self.rng.randint(1, 4))

    def tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(VOCABULARY) for _ in range(count)]

    def begin(self, group: int, members: int) -> None:
        self.prompts[group] = self.tokens(1 if group == 0 else self.rng.randint(2, 12))
        self.streamer.begin_group(group, self.prompts[group])
        for index in range(members):
            self.text[10 * group + index] = (group, self.tokens(self.rng.randint(1, 40)))

    def chunk(self, trajectory: int, most: int = 9) -> None:
        """Hand over the next few tokens of a trajectory, if it has any left."""
        group, response = self.text[trajectory]
        held = self.streamer.tokens_held(trajectory)
        if tokens := response[held : held + self.rng.randint(1, most)]:
            self.streamer.extend_trajectory(trajectory, group, tokens)

    def stream(self, rounds: int = 1000, most_tokens: int = 30) -> None:
        """Chunks of random sizes of random trajectories, a short call after each few."""
        for _ in range(rounds):
            rest = [n for n, (_, r) in self.text.items() if self.streamer.tokens_held(n) < len(r)]
            if not rest:
                break
            for trajectory in self.rng.sample(rest, self.rng.randint(1, len(rest))):
                self.chunk(trajectory)
            self.run(self.rng.randint(1, most_tokens))

    def run(self, most_tokens: int) -> None:
        self.keep(self.streamer.run_call(most_tokens, priority=lambda _: self.rng.random()))

    def finish(self) -> None:
        while self.streamer.has_pending(self.text):
            self.run(40)

    def keep(self, scored: Iterable[StreamedLogprobs]) -> None:
        for piece in scored:
            known = self.found.setdefault(piece.trajectory, [])
            assert piece.offset == len(known), "no token twice, none left out"
            known.extend(piece.logprobs.tolist())
            if piece.entropies is not None:
                self.entropies.setdefault(piece.trajectory, []).extend(piece.entropies.tolist())

    def end(self, trajectory: int) -> None:
        """Abort: the streamer and the case forget it."""
        self.streamer.release_trajectory(trajectory)
        del self.text[trajectory]
        self.found.pop(trajectory, None)

    @torch.no_grad()
    def distributions(self, trajectory: int) -> torch.Tensor:
        """By one unpadded forward of stock attention: shape (tokens, V)."""
        group, response = self.text[trajectory]
        tokens = torch.tensor([[*self.prompts[group], *response]])
        logits = self.model(input_ids=tokens).logits[0, len(self.prompts[group]) - 1 : -1]
        return (logits / TEMPERATURE).log_softmax(-1)

    def worst(self) -> float:
        """Largest difference of a logprob; all tokens of all trajectories are there."""
        gaps: list[float] = []
        assert sorted(self.found) == sorted(self.text)
        for trajectory, (_, response) in self.text.items():
            taken = torch.tensor(response)[:, None]
            expected = self.distributions(trajectory).gather(-1, taken)[:, 0]
            assert len(self.found[trajectory]) == len(response)
            gaps.append(float((torch.tensor(self.found[trajectory]) - expected).abs().max()))
        return max(gaps)

    def spoil_free_rows(self) -> None:
        pool = self.streamer._pool
        free = torch.from_numpy(pool._stack[: pool.free].copy())
        for table in (pool.keys_LRND, pool.values_LRND):
            table[:, free] = float("nan")


@pytest.mark.parametrize("seed", range(4))
def test_chunks_of_any_size_and_order_equal_whole_forwards(model: Any, seed: int):
    case = Case(model, seed)
    case.stream()
    case.finish()
    assert case.worst() < 1e-4


def test_entropies_are_those_of_the_sampling_distribution(model: Any):
    case = Case(model, 5, entropy=True)
    case.stream()
    case.finish()
    for trajectory in case.text:
        logprobs = case.distributions(trajectory)
        expected = -(logprobs.exp() * logprobs).sum(-1)
        assert case.entropies[trajectory] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_aborted_trajectories_serve_others_even_when_full_of_nan(model: Any, seed: int):
    case = Case(model, seed)
    case.stream(rounds=4)
    for trajectory in list(case.text)[::2]:
        case.end(trajectory)
    case.spoil_free_rows()
    case.begin(7, members=3)
    case.stream()
    case.finish()
    assert case.worst() < 1e-4


@pytest.mark.parametrize("kv_tokens", [0, 25, 90])
def test_what_does_not_fit_is_dropped_whole_and_recomputed(model: Any, kv_tokens: int):
    case = Case(model, 2, kv_tokens=kv_tokens)
    case.spoil_free_rows()
    case.stream()
    case.finish()
    dropped = case.streamer.dropped
    assert dropped
    assert bool(set(case.text) - dropped) == (kv_tokens > 0), "some fit"
    assert case.streamer.statistics()["cached"] <= kv_tokens
    for trajectory in dropped:
        case.found.pop(trajectory, None)  # what came before it was dropped
    case.keep(case.streamer.recompute_logprobs(sorted(dropped), most_tokens=60))
    assert case.worst() < 1e-4


def test_prompt_is_cached_once_and_as_long_as_a_member_needs_it(model: Any):
    streamer = CachedForward(model, TEMPERATURE, 100)
    streamer.begin_group(1, [3, 4, 5, 6, 7])
    for trajectory in (10, 11):
        streamer.extend_trajectory(trajectory, 1, [8, 9, 10])
    streamer.run_call(100)
    assert streamer.statistics()["cached"] == 4 + 3 + 3
    streamer.release_trajectory(10)
    assert streamer.statistics()["cached"] == 4 + 3
    streamer.release_trajectory(11)
    assert streamer.statistics()["cached"] == 0
    streamer.extend_trajectory(12, 1, [8, 9, 10])  # a latecomer: the prompt is fed again
    [scored] = streamer.run_call(100)
    assert len(scored.logprobs) == 3
    streamer.release_group(1)
    assert streamer.statistics() == {"cached": 0, "pending": 0, "trajectories": 0, "dropped": 0}


def test_nothing_of_one_version_of_the_weights_is_read_in_the_next(directory: Path):
    net: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    case = Case(net, 3)
    case.stream(rounds=6)
    case.streamer.clear_cache()
    case.spoil_free_rows()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
    case.found.clear()
    with pytest.raises(StreamError, match="group 1 has no prompt"):
        case.streamer.extend_trajectory(10, 1, [2])
    for group, prompt in case.prompts.items():
        case.streamer.begin_group(group, prompt)
    case.stream()
    case.finish()
    assert case.worst() < 1e-4


def test_low_priorities_are_fed_first_and_a_call_is_never_over_its_size(model: Any):
    streamer = CachedForward(model, TEMPERATURE, 100)
    streamer.begin_group(1, [3, 4, 5])
    for trajectory in (10, 11, 12):
        streamer.extend_trajectory(trajectory, 1, [8, 9, 10, 11])
    order = {10: 2.0, 11: 0.0, 12: 1.0}
    found = streamer.run_call(2 + 4 + 1, priority=order.__getitem__)
    assert [(piece.trajectory, len(piece.logprobs)) for piece in found] == [(11, 4), (12, 1)]
    found = streamer.run_call(100, priority=order.__getitem__)
    assert [(piece.trajectory, piece.offset) for piece in found] == [(12, 1), (10, 0)]
    assert streamer.run_call(100) == []


def test_call_that_fails_leaves_no_half_written_row(model: Any):
    case = Case(model, 4)
    case.stream(rounds=3)

    def exhaust(*_: Any) -> None:
        raise torch.OutOfMemoryError("the test's")

    for trajectory in case.text:
        case.chunk(trajectory)
    handle = model.model.layers[1].register_forward_pre_hook(exhaust)
    with pytest.raises(torch.OutOfMemoryError):
        case.streamer.run_call(100)
    handle.remove()
    known = {trajectory for trajectory in case.text if case.streamer.tokens_held(trajectory)}
    assert case.streamer.dropped == known
    assert case.streamer.statistics()["cached"] == 0
    case.stream()
    case.finish()
    for trajectory in case.streamer.dropped:
        case.found.pop(trajectory, None)
    case.keep(case.streamer.recompute_logprobs(case.streamer.dropped, most_tokens=4096))
    assert case.worst() < 1e-4


def test_what_makes_no_sense_is_refused_by_name(model: Any):
    streamer = CachedForward(model, TEMPERATURE, 100)
    streamer.begin_group(1, [3])
    streamer.begin_group(2, [3])
    streamer.extend_trajectory(10, 1, [4])
    with pytest.raises(StreamError, match="trajectory 10 is of group 1, not 2"):
        streamer.extend_trajectory(10, 2, [4])
    with pytest.raises(StreamError, match="group 1 has its prompt"):
        streamer.begin_group(1, [3])
    with pytest.raises(StreamError, match="group 3: an empty prompt"):
        streamer.begin_group(3, [])
    with pytest.raises(KeyError):
        streamer.recompute_logprobs([77], most_tokens=10)
    streamer.release_trajectory(77)  # aborted before anything came of it
    streamer.release_group(77)


def test_pool_hands_out_each_row_once_and_never_the_padding_row():
    pool = KvPool(layers=1, heads=1, head_dim=2, rows=9, dtype=torch.float32, device=CPU)
    rng = random.Random(1)
    held: list[np.ndarray[Any, Any]] = []
    for _ in range(300):
        count = rng.randint(0, 4)
        if count > pool.free:
            with pytest.raises(PoolFull):
                pool.take_rows(count)
            pool.give_back_rows(held.pop(rng.randrange(len(held))))
        else:
            held.append(pool.take_rows(count))
        rows = [int(row) for part in held for row in part]
        assert len(set(rows)) == len(rows) == 9 - pool.free
        assert all(1 <= row <= 9 for row in rows)
