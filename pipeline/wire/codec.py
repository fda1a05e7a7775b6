"""Encodes messages as msgpack and decodes them; knows no socket.

A frame that does not decode or does not add up raises `WireError`; the caller counts
and drops it: a bad frame is never fatal and never unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from pipeline.wire.fields import MAX_LOGPROB
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
"""Most bytes of a peer's control message and of a token frame's header: both are short."""
MAX_COMMAND_BYTES = 64 << 20
"""Most bytes of a message of the stage: it may hold prompts and responses."""
MAX_DATA_BYTES = 64 << 20
MAX_NETWORK_BYTES = (1 << 20) + 1024
"""Most bytes of a part that the stage reads from a network, encryption included: each connection
that has not proved a key yet may make it hold as many."""

_encoder = msgspec.msgpack.Encoder()
_from_peer = msgspec.msgpack.Decoder(FromPeer)
_to_peer = msgspec.msgpack.Decoder(ToPeer)
_token_batch = msgspec.msgpack.Decoder(TokenBatch)


def encode_message(message: Message) -> bytes:
    """Encode a message as msgpack."""
    return _encoder.encode(message)


def _decode(decoder: msgspec.msgpack.Decoder[Any], frame: bytes | memoryview, limit: int) -> Any:
    if len(frame) > limit:
        raise WireError(f"frame of {len(frame)} bytes is over the limit of {limit}")
    try:
        return decoder.decode(frame)
    # Deep nesting raises RecursionError, text that is not UTF-8 UnicodeDecodeError.
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"frame does not decode: {error}") from error


def decode_from_peer(frame: bytes | memoryview) -> FromPeer:
    """Decode a message of an engine or learner. Raises WireError."""
    return _decode(_from_peer, frame, MAX_REPORT_BYTES)


def decode_to_peer(frame: bytes | memoryview) -> ToPeer:
    """Decode a message of the stage. Raises WireError."""
    return _decode(_to_peer, frame, MAX_COMMAND_BYTES)


def sender_of(frames: Sequence[bytes | memoryview]) -> str:
    """Return the engine that a data-plane frame names, even if the frame is bad; '' if none."""
    try:
        header: TokenBatch = _decode(_token_batch, frames[0], MAX_REPORT_BYTES)
    except (WireError, IndexError):
        return ""
    return header.engine


def decode_tokens(
    frames: list[bytes] | list[memoryview], vocabulary: int
) -> tuple[TokenBatch, Ints, Floats]:
    """Decode a data-plane frame: header, tokens, logprobs; the arrays are views, not copies.

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
