"""Frames: round trips, and what a hostile or broken peer may send."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.wire import codec, messages
from pipeline.wire.codec import decode_from_peer, decode_to_peer, decode_tokens, encode_message
from pipeline.wire.fields import Drawing
from pipeline.wire.messages import (
    AbortLegs,
    Alive,
    ChunkHead,
    CloseStep,
    CloseVersion,
    ForgetGroup,
    Generate,
    GroupFailed,
    GroupTrained,
    Heartbeat,
    Join,
    LoadWeights,
    Manifest,
    Message,
    OldLogprobs,
    OutOfMemory,
    Piece,
    Published,
    Refused,
    Request,
    Save,
    Saved,
    Shutdown,
    Span,
    Spans,
    StepDone,
    StepSkipped,
    StreamedChunk,
    StreamedTokens,
    TokenBatch,
    TrainGroup,
    TrainMember,
    VersionClosed,
    WeightsFailed,
    WeightsLoaded,
    Welcome,
    WireError,
    floats,
    ints,
)

MANIFEST = Manifest(
    version=3, directory="/w", bytes=9, checksum="ab", probe=[1, 2], logprobs={"1.0": [-0.5]}
)
FROM_PEER: list[Message] = [
    Join(protocol=1, role="engine", name="e0", slots=4, vocabulary=24, about={"torch": "2"}),
    Heartbeat(progress=3, activity="idle", budget_s=0.0),
    Spans(spans=(Span("forward and backward", 1.0, 2.5, (7, 8), (0.5, 0.5)),)),
    WeightsLoaded(version=3, gaps={"1.0": 1e-6}),
    WeightsFailed(version=3, why="checksum"),
    GroupTrained(step=1, group=2, tokens=12.5, metrics={"loss": 0.1}),
    GroupFailed(step=1, group=2, why="nan"),
    OldLogprobs(version=1, pieces=(Piece(7, 2, b"\0\0\0\0", b"\0\0\0\0"),)),
    VersionClosed(version=1),
    StepDone(step=1, version=2, manifest=MANIFEST),
    StepSkipped(step=1, why="nan"),
    OutOfMemory(tokens=512, why="CUDA out of memory"),
    Published(manifest=MANIFEST),
    Saved(directory="/c"),
    Shutdown(why="SIGTERM"),
]
TO_PEER: list[Message] = [
    Welcome(incarnation=1, epoch=0, weights_directory="/w"),
    Refused(why="no"),
    Alive(),
    Generate(
        requests=(
            Request(
                trajectory=1,
                leg=0,
                prompt=b"\x01\0\0\0",
                prefix=b"",
                max_tokens=8,
                drawing=Drawing(),
                seed=7,
            ),
        )
    ),
    AbortLegs(legs=((1, 0), (2, 3))),
    LoadWeights(manifest=MANIFEST),
    LoadWeights(manifest=None),
    TrainGroup(
        step=1,
        group=2,
        prompt=b"",
        members=(
            TrainMember(
                trajectory=1,
                response=b"",
                behaviour=b"",
                reward=1.0,
                advantage=0.5,
                token_advantages=b"\0\0\0\x3f",
            ),
        ),
    ),
    ForgetGroup(group=2),
    StreamedTokens(prompts={2: b""}, chunks=(StreamedChunk(2, 1, 0, b""),), gone=(3,)),
    CloseVersion(version=1, prompts={2: b""}, chunks=(StreamedChunk(2, 1, 0, b""),)),
    CloseStep(step=1, groups=(1, 2), normaliser=20.0),
    Save(directory="/c", step=1, version=2),
    Shutdown(why="over"),
]
BOMB = b"\xdd\xff\xff\xff\xff"  # msgpack: a list of 2^32 - 1 items follows


def named(message: object) -> str:
    return type(message).__name__


def batch(*chunks: ChunkHead, **other: Any) -> TokenBatch:
    values: dict[str, Any] = dict(
        engine="e0", incarnation=1, epoch=0, sequence=0, sampled=0, sent_at_s=0.0, chunks=chunks
    )
    return TokenBatch(**{**values, **other})


def parts(header: TokenBatch, tokens: list[int], logprobs: list[float]) -> list[bytes]:
    return [
        encode_message(header),
        np.array(tokens, "<i4").tobytes(),
        np.array(logprobs, "<f4").tobytes(),
    ]


TWO = batch(ChunkHead(7, 0, 0, 2, 3), ChunkHead(9, 1, 16, 1, 3, "stop"))
GOOD = parts(TWO, [5, 6, 1], [-0.5, 0.0, -2.0])


@pytest.mark.parametrize("message", FROM_PEER, ids=named)
def test_what_a_peer_sends_comes_back_equal(message: Message) -> None:
    assert decode_from_peer(encode_message(message)) == message


@pytest.mark.parametrize("message", TO_PEER, ids=named)
def test_what_the_stage_sends_comes_back_equal(message: Message) -> None:
    assert decode_to_peer(encode_message(message)) == message


def test_every_message_has_a_round_trip_here() -> None:
    from typing import get_args

    assert {type(m) for m in FROM_PEER} == set(get_args(messages.FromPeer))
    assert {type(m) for m in TO_PEER} == set(get_args(messages.ToPeer))


def test_a_token_frame_comes_back_with_its_numbers_uncopied() -> None:
    header, tokens, logprobs = decode_tokens(GOOD, 24)
    assert header == TWO
    assert tokens.tolist() == [5, 6, 1]
    assert logprobs.tolist() == [-0.5, 0.0, -2.0]
    assert not tokens.flags.owndata


def test_an_empty_token_frame_is_a_heartbeat() -> None:
    header, tokens, _ = decode_tokens(parts(batch(), [], []), 24)
    assert (header.chunks, len(tokens)) == ((), 0)


@pytest.mark.fault("a logprob that is NaN, infinite or above 0", part="engines", by="direct")
@pytest.mark.parametrize("logprob", [float("nan"), float("inf"), -float("inf"), 0.1])
def test_a_logprob_that_is_not_finite_or_positive_is_refused(logprob: float) -> None:
    """Promise: the frame is refused whole.
    Bound: at that frame.
    """
    with pytest.raises(WireError, match="a logprob is not finite or above 0"):
        decode_tokens(parts(TWO, [5, 6, 1], [-0.5, logprob, -2.0]), 24)


@pytest.mark.parametrize("token", [-1, 24, 2**31 - 1])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(WireError, match=r"a token is outside 0\.\.23"):
        decode_tokens(parts(TWO, [5, token, 1], [-0.5, 0.0, -2.0]), 24)


@pytest.mark.parametrize(
    "frames,why",
    [
        (GOOD[:2], "2 parts, expected 3"),
        ([*GOOD, b""], "4 parts, expected 3"),
        ([GOOD[0], GOOD[1][:-4], GOOD[2]], "tokens: 8 bytes for 3 tokens"),
        ([GOOD[0], GOOD[1], GOOD[2] + b"\0"], "logprobs: 13 bytes for 3 tokens"),
        ([encode_message(batch(ChunkHead(7, 0, 0, 2**53, 3))), b"", b""], "tokens: 0 bytes"),
        (parts(batch(ChunkHead(7, 0, 0, 0, 3, "done")), [], []), "finish 'done' of trajectory 7"),
    ],
    ids=["few parts", "many parts", "few tokens", "ragged", "huge count", "unknown finish"],
)
def test_counts_that_do_not_add_up_are_refused(frames: list[bytes], why: str) -> None:
    with pytest.raises(WireError, match=why):
        decode_tokens(frames, 24)


@pytest.mark.parametrize("name", ["", "a" * 65, "../e0", "e 0", "é"])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(WireError):
        decode_from_peer(encode_message(Join(protocol=1, role="engine", name=name)))


def with_raw(message: dict[str, Any], key: str, raw: bytes) -> bytes:
    """A map of these entries, and one whose value are these bytes."""
    pack = msgspec.msgpack.encode
    body = b"".join(pack(k) + pack(v) for k, v in message.items())
    return bytes([0x80 | (len(message) + 1)]) + body + pack(key) + raw


@pytest.mark.fault(
    "a message that claims four billion entries, or is nested 100,000 deep",
    part="wire",
    by="direct",
)
@pytest.mark.parametrize(
    "frame",
    [
        with_raw({"type": "AbortLegs"}, "legs", BOMB),
        with_raw({"type": "Alive"}, "other", BOMB),
        with_raw({"type": "Alive"}, "other", b"\x91" * 100_000),
        with_raw({"type": "TrainGroup", "step": 1, "group": 1}, "prompt", b"\xc6\xff\xff\xff\xff"),
        with_raw({"type": "Refused"}, "why", b"\xdb\xff\xff\xff\xff"),
        with_raw({"type": "Refused"}, "why", b"\xa2\xff\xfe"),
    ],
    ids=["list of 4 billion", "unknown list", "nesting", "bytes", "text", "no utf-8"],
)
def test_a_bomb_is_a_wire_error_at_once(frame: bytes) -> None:
    """Promise: it does not decode, and that is all.
    Bound: at once.
    """
    with pytest.raises(WireError, match="frame does not decode"):
        decode_to_peer(frame)


def test_a_frame_over_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_REPORT_BYTES", 10)
    with pytest.raises(WireError, match="over the limit of 10"):
        decode_from_peer(b"\0" * 11)


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    frame = pickle.dumps(Canary(trap))
    for decode in (decode_from_peer, decode_to_peer, lambda f: decode_tokens([f, f, f], 24)):
        with pytest.raises(WireError):
            decode(frame)
    assert not trap.exists()


mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert"]), st.integers(0, 10_000), st.binary(max_size=4)
    ),
    min_size=1,
    max_size=4,
)


def mutated(frame: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for how, where, new in changes:
        at = where % (len(frame) + 1)
        if how == "flip":
            frame = frame[:at] + new + frame[at + len(new) :]
        elif how == "cut":
            frame = frame[:at] + frame[at + len(new) :]
        else:
            frame = frame[:at] + new + frame[at:]
    return frame


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*FROM_PEER, *TO_PEER]), mutations)
def test_only_wire_errors_leave_the_decoding_of_a_broken_control_frame(
    message: Message, changes: list[tuple[str, int, bytes]]
) -> None:
    frame = mutated(encode_message(message), changes)
    for decode in (decode_from_peer, decode_to_peer):
        try:
            decode(frame)
        except WireError:
            pass


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2), mutations)
def test_only_wire_errors_leave_the_decoding_of_a_broken_token_frame(
    part: int, changes: list[tuple[str, int, bytes]]
) -> None:
    frames = list(GOOD)
    frames[part] = mutated(frames[part], changes)
    try:
        header, tokens, logprobs = decode_tokens(frames, 24)
    except WireError:
        return
    assert sum(c.count for c in header.chunks) == len(tokens) == len(logprobs)
    assert all(0 <= token < 24 for token in tokens)
    assert np.isfinite(logprobs).all()


def test_bytes_that_are_no_array_are_refused() -> None:
    for read in (ints, floats):
        with pytest.raises(WireError, match="3 bytes are no"):
            read(b"abc")
