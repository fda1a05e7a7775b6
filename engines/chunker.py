"""Cuts new tokens of many legs into chunks, and packs due chunks into frames for the wire.

A leg's tokens are due when `chunk_tokens` of them have gathered, when the leg ends, and
when the version of the weights changes. Keeps three promises: a chunk has one version, a finish
rides on the chunk of the last token, and no frame is larger than the stage
accepts. Knows no socket, no clock and no engine. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.wire.fields import MAX_SCALAR
from pipeline.wire.messages import ChunkHead

Key = tuple[int, int]  # (trajectory, leg)
MOST_CHUNKS = 8192
"""Chunks per frame: with the times of their legs at most 125 bytes each, of 1 MiB for a header."""
MOST_TOKENS = 1 << 18
"""Tokens per frame: 1 MiB a part, as the stage reads from a network."""


@dataclass(slots=True)
class _Gathered:
    """A leg's tokens that are not due yet, all of one version."""

    offset: int  # response tokens that the trajectory held before `tokens`
    version: int = 0
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    score: float | None = None  # newest of these tokens
    remaining: float | None = None
    marked: int | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """Chunks that are due, in the form of a `TokenBatch`."""

    chunks: tuple[ChunkHead, ...]
    tokens: bytes  # little-endian int32, the chunks one after another
    logprobs: bytes  # little-endian float32, likewise


class Chunker:
    """Gathers tokens of the legs of one epoch. O(1) per token."""

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = min(chunk_tokens, MOST_TOKENS // 2)
        self._legs: dict[Key, _Gathered] = {}
        self._heads: list[ChunkHead] = []
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self.sent_tokens = 0
        """Response tokens that have left in frames."""

    def begin_leg(self, key: Key, offset: int) -> None:
        """Start a leg after `offset` response tokens."""
        self._legs[key] = _Gathered(offset)

    def add_tokens(
        self,
        key: Key,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        version: int,
        finish: str = "",
        score: float | None = None,
        remaining: float | None = None,
        marked: int | None = None,
    ) -> None:
        """Add new tokens of a leg, all sampled with `version`; `finish` ends the leg. A chunk has
        the newest `score` and `remaining` that came with its tokens, and `marked`."""
        if len(tokens) != len(logprobs):
            raise ValueError(f"leg {key}: {len(tokens)} tokens with {len(logprobs)} logprobs")
        leg = self._legs[key]
        if tokens and leg.tokens and version != leg.version:
            self._cut(key, leg, "")
        if tokens or not leg.tokens:
            leg.version = version
        leg.tokens.extend(tokens)
        leg.logprobs.extend(logprobs)
        leg.score = leg.score if score is None else _scalar(score)
        leg.remaining = _scalar(remaining) if remaining is not None and remaining >= 0 else None
        leg.marked = leg.marked if marked is None else marked
        if finish:
            self._cut(key, leg, finish)
            del self._legs[key]
        elif len(leg.tokens) >= self._chunk_tokens:
            self._cut(key, leg, "")

    def make_all_due(self) -> None:
        """Make all gathered tokens due, as a change of the weights does."""
        for key, leg in self._legs.items():
            if leg.tokens:
                self._cut(key, leg, "")

    def take_frame(self) -> Frame | None:
        """Return the next frame of due chunks; call until it returns None."""
        if not self._heads:
            return None
        chunks = count = 0
        for head in self._heads[:MOST_CHUNKS]:
            if chunks and count + head.count > MOST_TOKENS:
                break
            chunks, count = chunks + 1, count + head.count
        frame = Frame(
            chunks=tuple(self._heads[:chunks]),
            tokens=np.asarray(self._tokens[:count], dtype="<i4").tobytes(),
            logprobs=np.asarray(self._logprobs[:count], dtype="<f4").tobytes(),
        )
        self.sent_tokens += count
        del self._heads[:chunks], self._tokens[:count], self._logprobs[:count]
        return frame

    def _cut(self, key: Key, leg: _Gathered, finish: str) -> None:
        count = len(leg.tokens)
        self._heads.append(
            ChunkHead(
                trajectory=key[0],
                leg=key[1],
                offset=leg.offset,
                count=count,
                version=leg.version,
                finish=finish,
                score=leg.score,
                remaining=leg.remaining,
                marked=leg.marked,
            )
        )
        self._tokens += leg.tokens
        self._logprobs += leg.logprobs
        leg.offset += count
        leg.tokens, leg.logprobs = [], []
        leg.score = leg.remaining = leg.marked = None


def _scalar(value: float) -> float | None:
    """The number, or None for one that the stage would refuse with the whole frame."""
    return float(value) if abs(value) <= MAX_SCALAR else None
