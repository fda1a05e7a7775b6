"""The modelled engine against a closed formula, and against decoding token by token."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.coordinator.events import Generate, Tokens
from pipeline.hardware.costs import DEVICES, SHAPES, EngineCost, engine_cost
from pipeline.simulation.engine import ModelledEngine
from pipeline.simulation.workload import Response

STOP = frozenset({1})


def place(trajectory: int, leg: int = 0, held: int = 0, limit: int = 10_000) -> Generate:
    return Generate(
        engine="e0", kind="train", prompt=0, trajectory=trajectory, leg=leg,
        prefix=bytes(4 * held), max_tokens=limit, seed=trajectory,
    )  # fmt: skip


def response(tokens: int) -> Response:
    return Response(tokens=tokens, reward=1.0, confidence=-0.5)


def engine_of(cost: EngineCost, slots: int = 64, chunk_tokens: int = 0) -> ModelledEngine:
    engine = ModelledEngine("e0", 1, slots, cost, chunk_tokens)
    engine.version = 0
    return engine


def ends_of(engine: ModelledEngine) -> dict[int, float]:
    """Runs it dry: trajectory -> when it ended."""
    found: dict[int, float] = {}
    while engine.legs:
        now = engine.due()
        for chunk in engine.flush(now, STOP).chunks:
            if chunk.finish:
                found[chunk.trajectory] = now
    return found


def test_ends_are_those_of_the_papers_cost_formula():
    """T = sum (l_m - l_(m-1)) PTL(n - m + 1), arXiv 2605.30859; all start together."""
    cost = EngineCost(points=((1, 0.010), (4, 0.013), (8, 0.021)))
    lengths = [5, 9, 9, 40, 41, 200]
    engine = engine_of(cost)
    for trajectory, tokens in enumerate(lengths):
        engine.place(0.0, place(trajectory), 10, response(tokens))
    base = cost.table(64)
    expected, at, before = [], 0.0, 0
    for number, tokens in enumerate(sorted(lengths)):
        at += (tokens - before) * base[len(lengths) - number]
        before = tokens
        expected.append(at)
    assert sorted(ends_of(engine).values()) == pytest.approx(expected, rel=1e-12)


def token_by_token(cost: EngineCost, lengths: list[int], prompt: int) -> list[float]:
    """One decode step after another, each reads what is cached in its middle."""
    base = cost.table(64)
    now, done, ends = 0.0, 0, []
    left = sorted(lengths)
    while left:
        running = len(left)
        cached = running * (prompt + done + 0.5)
        now += base[running] + cost.kv_s * cached
        done += 1
        ends += [now] * left.count(done)
        left = [tokens for tokens in left if tokens > done]
    return ends


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.floats(0.0, 1e-5))
def test_a_growing_cache_costs_what_decoding_token_by_token_does(lengths: list[int], kv_s: float):
    cost = EngineCost(points=((1, 0.010), (8, 0.012), (32, 0.02)), kv_s=kv_s)
    engine = engine_of(cost)
    for trajectory, tokens in enumerate(lengths):
        engine.place(0.0, place(trajectory), 30, response(tokens))
    found = sorted(ends_of(engine).values())
    assert found == pytest.approx(token_by_token(cost, lengths, 30), rel=1e-6)


def test_a_prompt_holds_everybody_up_and_so_does_a_load_of_weights():
    cost = EngineCost(points=((1, 0.01), (2, 0.01)), prefill_s=0.001, load_s=0.5)
    engine = engine_of(cost)
    engine.place(0.0, place(0), 100, response(10))
    assert engine.due() == pytest.approx(0.1 + 10 * 0.01)
    engine.load(0.15, 1, STOP)  # five tokens in
    assert engine.due() == pytest.approx(0.15 + 0.5 + 5 * 0.01)


def test_chunks_of_one_response_join_up_whatever_happens_in_between():
    rng = random.Random(0)
    engine = engine_of(EngineCost(points=((1, 0.01), (8, 0.02))), slots=8, chunk_tokens=4)
    held = dict.fromkeys(range(6), 0)
    frames: list[Tokens] = []
    for trajectory in held:
        engine.place(0.01 * trajectory, place(trajectory), 5, response(rng.randint(3, 60)))
    engine.load(0.2, 1, STOP)
    engine.slow = 3.0
    frames.append(engine.end(0.4, [(5, 0)], STOP))
    while engine.legs:
        frames.append(engine.flush(engine.due(), STOP))
    for frame in frames:
        assert len(frame.tokens) == len(frame.logprobs) == 4 * sum(c.count for c in frame.chunks)
        for chunk in frame.chunks:
            assert chunk.offset >= held[chunk.trajectory]
            held[chunk.trajectory] = chunk.offset + chunk.count
    assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
    assert frames[-1].sampled == sum(held.values())


def test_a_resumed_leg_goes_on_with_the_same_response_and_its_limit_cuts_it():
    engine = engine_of(EngineCost(points=((1, 0.01), (2, 0.01))))
    engine.place(0.0, place(0, leg=1, held=30), 5, response(50))
    [chunk] = engine.flush(engine.due(), STOP).chunks
    assert (chunk.offset, chunk.count, chunk.finish) == (30, 20, "stop")
    engine.place(1.0, place(1, limit=8), 5, response(50))
    [chunk] = engine.flush(engine.due(), STOP).chunks
    assert (chunk.count, chunk.finish) == (8, "length")


def test_an_engine_takes_no_more_than_it_has_slots_for():
    engine = engine_of(EngineCost(points=((1, 0.01), (2, 0.01))), slots=1)
    engine.place(0.0, place(0), 5, response(5))
    with pytest.raises(ValueError, match="1 on 1 slots"):
        engine.place(0.0, place(1), 5, response(5))


def test_costs_follow_from_the_hardware():
    one = engine_cost(SHAPES["qwen2.5-14b"], DEVICES["h20"])
    two = engine_cost(SHAPES["qwen2.5-14b"], DEVICES["h20"], gpus=2)
    assert two.table(32)[32] < one.table(32)[32] < 2 * two.table(32)[32]
    assert two.kv_s == one.kv_s / 2
    mixture = SHAPES["qwen3-30b-a3b"]
    assert mixture.read_bytes(1) == pytest.approx(2 * mixture.active, rel=0.01)
    assert mixture.read_bytes(1000) == pytest.approx(2 * mixture.parameters, rel=0.01)


def test_an_engine_says_how_many_tokens_are_to_come_if_it_is_to():
    for says in (False, True):
        engine = ModelledEngine(
            "e0", 1, 4, EngineCost(points=((1, 0.01), (8, 0.02))), 3, remaining=says
        )
        engine.version = 0
        engine.place(0.0, place(0), 5, response(8))
        chunks = [c for _ in range(3) for c in engine.flush(engine.due(), STOP).chunks]
        assert [c.count for c in chunks] == [3, 3, 2]
        assert [c.remaining for c in chunks] == ([5.0, 2.0, 0.0] if says else [None] * 3)
