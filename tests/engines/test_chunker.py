"""Chunks that are due: claims about `engines.chunker`."""

from typing import Any

import numpy as np
import pytest

from engines.chunker import MOST_CHUNKS, Chunker
from pipeline.wire.codec import decode_tokens, encode_message
from pipeline.wire.messages import ChunkHead, LegTimes, TokenBatch

A, B = (7, 0), (9, 2)


def flusher_of(chunk_tokens: int = 4, **offsets: int) -> Chunker:
    flusher = Chunker(chunk_tokens)
    flusher.begin_leg(A, offsets.get("a", 0))
    flusher.begin_leg(B, offsets.get("b", 0))
    return flusher


def add(flusher: Chunker, key: tuple[int, int], tokens: list[int], version: int = 1, end: str = ""):
    flusher.add_tokens(key, tokens, [-float(token) for token in tokens], version, end)


def heads(flusher: Chunker) -> list[ChunkHead]:
    frame = flusher.take_frame()
    return list(frame.chunks) if frame else []


def test_tokens_wait_until_a_chunk_has_gathered_and_then_all_go_out():
    flusher = flusher_of()
    add(flusher, A, [5])
    assert flusher.take_frame() is None
    add(flusher, A, [6, 7, 8, 9])
    assert heads(flusher) == [ChunkHead(7, 0, 0, 5, 1)]
    assert flusher.take_frame() is None


def test_the_finish_rides_on_the_chunk_of_the_last_token():
    flusher = flusher_of()
    add(flusher, A, [5, 6])
    add(flusher, A, [1], end="stop")
    assert heads(flusher) == [ChunkHead(7, 0, 0, 3, 1, "stop")]


def test_an_abort_without_new_tokens_still_ends_the_leg_in_band():
    flusher = flusher_of(b=30)
    add(flusher, B, [], end="abort")
    assert heads(flusher) == [ChunkHead(9, 2, 30, 0, 1, "abort")]


def test_a_chunk_has_one_version():
    flusher = flusher_of()
    add(flusher, A, [5, 6], version=1)
    add(flusher, A, [7], version=2, end="length")
    assert heads(flusher) == [ChunkHead(7, 0, 0, 2, 1), ChunkHead(7, 0, 2, 1, 2, "length")]


def test_offsets_of_a_resumed_leg_go_on_after_its_prefix():
    flusher = flusher_of(chunk_tokens=2, b=11)
    add(flusher, B, [5, 6])
    add(flusher, B, [7, 8])
    assert [head.offset for head in heads(flusher)] == [11, 13]


def test_a_cut_makes_all_that_has_gathered_due_and_nothing_else():
    flusher = flusher_of()
    add(flusher, A, [5])
    flusher.make_all_due()
    assert heads(flusher) == [ChunkHead(7, 0, 0, 1, 1)]


def test_all_that_is_due_goes_in_one_frame_that_the_stage_decodes():
    flusher = flusher_of(chunk_tokens=2)
    add(flusher, A, [5, 6])
    add(flusher, B, [7], end="stop")
    frame = flusher.take_frame()
    assert frame is not None
    header = TokenBatch(
        engine="e0", incarnation=0, epoch=0, sequence=0, sampled=3, sent_at_s=0, chunks=frame.chunks
    )
    decoded, tokens, logprobs = decode_tokens(
        [encode_message(header), frame.tokens, frame.logprobs], vocabulary=24
    )
    assert decoded == header
    assert tokens.tolist() == [5, 6, 7]
    np.testing.assert_array_equal(logprobs, [-5.0, -6.0, -7.0])


def test_every_token_that_left_is_counted_those_of_aborted_legs_too():
    flusher = flusher_of(chunk_tokens=2)
    add(flusher, A, [5, 6])
    add(flusher, B, [7], end="abort")
    assert flusher.sent_tokens == 0
    flusher.take_frame()
    assert flusher.sent_tokens == 3


def test_tokens_without_their_logprobs_are_refused():
    with pytest.raises(ValueError, match="2 tokens with 1 logprobs"):
        flusher_of().add_tokens(A, [5, 6], [-1.0], 1)


def test_what_does_not_fit_a_frame_leaves_in_several_that_the_stage_takes():
    """The largest numbers that the wire allows: a header has a limit of its own."""
    legs, far = 2 * MOST_CHUNKS + 5, 2**52
    flusher = Chunker(8)
    for leg in range(legs):
        flusher.begin_leg((far + leg, 2**31), 2**31)
        flusher.add_tokens((far + leg, 2**31), [3], [-0.5], far, "abort")
    counts: list[int] = []
    while (frame := flusher.take_frame()) is not None:
        times = tuple(LegTimes(c.trajectory, c.leg, 0.1, 0.2, 0.3) for c in frame.chunks)
        header = TokenBatch(
            engine="e" * 64,
            incarnation=far,
            epoch=far,
            sequence=far,
            sampled=flusher.sent_tokens,
            sent_at_s=0.1,
            chunks=frame.chunks,
            times=times,
        )
        decode_tokens([encode_message(header), frame.tokens, frame.logprobs], 24)
        counts.append(len(frame.chunks))
    assert counts == [MOST_CHUNKS, MOST_CHUNKS, 5]
    assert flusher.sent_tokens == legs


def test_tokens_of_a_frame_have_a_limit_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engines.chunker.MOST_TOKENS", 10)
    flusher = flusher_of(chunk_tokens=100)
    for start in (0, 6, 12):
        add(flusher, A, list(range(start, start + 6)), version=start)
    add(flusher, A, [1], version=12, end="stop")
    frames = [heads(flusher) for _ in range(4)]
    assert [[chunk.count for chunk in frame] for frame in frames] == [[6], [6], [6, 1], []]


def test_a_chunk_has_the_newest_scalars_that_came_with_its_tokens():
    flusher = flusher_of(chunk_tokens=3)
    flusher.add_tokens(A, [5, 6], [-1.0, -1.0], 1, score=0.5, remaining=9.0, marked=2)
    flusher.add_tokens(A, [7], [-1.0], 1, remaining=8.0)
    flusher.add_tokens(A, [8, 9, 8], [-1.0] * 3, 1)
    [first, second] = heads(flusher)
    assert (first.score, first.remaining, first.marked) == (0.5, 8.0, 2)
    assert (second.score, second.remaining, second.marked) == (None, None, None)


@pytest.mark.parametrize(
    "name, wrong",
    [
        *(("score", value) for value in (float("nan"), float("inf"), -1e13)),
        *(("remaining", value) for value in (float("nan"), float("inf"), -1.0)),
    ],
)
def test_a_scalar_that_the_stage_would_refuse_is_left_out(name: str, wrong: float):
    flusher = flusher_of(chunk_tokens=1)
    scalars: dict[str, Any] = {name: wrong}
    flusher.add_tokens(A, [5], [-1.0], 1, **scalars)
    [head] = heads(flusher)
    assert (head.score, head.remaining) == (None, None)
