"""Messages as msgpack and back; knows no socket.

Whatever does not decode or does not add up raises `WireError`, which the shells count
and drop: a bad frame is never fatal and never unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from pipeline.wire.messages import (
    FINISHES,
    Floats,
    FromPeer,
    Ints,
    Message,
    TokenBatch,
    ToPeer,
    WireError,
)

MAX_REPORT_BYTES = 1 << 20
"""Of a peer's control message, and of a token frame's header: both are short."""
MAX_COMMAND_BYTES = 64 << 20
"""Of a message of the stage: prompts and responses are in it."""
MAX_DATA_BYTES = 64 << 20
MAX_LOGPROB = 1e-3
"""Logprobs are at most 0; rounding in float32 may lift them a little above."""

_encoder = msgspec.msgpack.Encoder()
_from_peer = msgspec.msgpack.Decoder(FromPeer)
_to_peer = msgspec.msgpack.Decoder(ToPeer)
_token_batch = msgspec.msgpack.Decoder(TokenBatch)


def encode_message(message: Message) -> bytes:
    """One message as msgpack."""
    return _encoder.encode(message)


def _decode(decoder: msgspec.msgpack.Decoder[Any], frame: bytes | memoryview, limit: int) -> Any:
    if len(frame) > limit:
        raise WireError(f"frame of {len(frame)} bytes is over the limit of {limit}")
    try:
        return decoder.decode(frame)
    # Deep nesting raises RecursionError, text that is no UTF-8 UnicodeDecodeError.
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"frame does not decode: {error}") from error


def decode_from_peer(frame: bytes | memoryview) -> FromPeer:
    """What an engine or learner sent. Raises WireError."""
    return _decode(_from_peer, frame, MAX_REPORT_BYTES)


def decode_to_peer(frame: bytes | memoryview) -> ToPeer:
    """What the stage sent. Raises WireError."""
    return _decode(_to_peer, frame, MAX_COMMAND_BYTES)


def sender_of(frames: Sequence[bytes | memoryview]) -> str:
    """The engine that a data-plane frame names, whatever else is wrong with it; '' if none."""
    try:
        header: TokenBatch = _decode(_token_batch, frames[0], MAX_REPORT_BYTES)
    except (WireError, IndexError):
        return ""
    return header.engine


def decode_tokens(
    frames: list[bytes] | list[memoryview], vocabulary: int
) -> tuple[TokenBatch, Ints, Floats]:
    """A data-plane frame: header, tokens, logprobs; the arrays are views, not copies.

    Raises WireError if the counts do not add up, a token is outside
    0..vocabulary-1, or a logprob is not finite or above 0.
    """
    if len(frames) != 3:
        raise WireError(f"{len(frames)} parts, expected 3")
    header: TokenBatch = _decode(_token_batch, frames[0], MAX_REPORT_BYTES)
    total = sum(chunk.count for chunk in header.chunks)
    for name, frame in (("tokens", frames[1]), ("logprobs", frames[2])):
        if len(frame) != total * 4:
            raise WireError(f"{name}: {len(frame)} bytes for {total} tokens")
    tokens = np.frombuffer(frames[1], dtype="<i4")
    logprobs = np.frombuffer(frames[2], dtype="<f4")
    for chunk in header.chunks:
        if chunk.finish not in FINISHES:
            raise WireError(f"finish {chunk.finish!r} of trajectory {chunk.trajectory}")
    if total:
        if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
            raise WireError(f"a token is outside 0..{vocabulary - 1}")
        # NaN compares false, so "not all fine" finds it.
        if not bool(np.all((logprobs <= MAX_LOGPROB) & np.isfinite(logprobs))):
            raise WireError("a logprob is not finite or above 0")
    return header, tokens, logprobs
