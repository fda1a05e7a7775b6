"""Tokens of one engine's legs that have come and are not handed over yet (`debug.ordered`).

Frames go in as the engine sends them, and come out with exactly so many tokens of each leg. An
aborted leg comes out as ended at the tokens handed over, once the engine has said that it is. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.coordinator.events import Tokens
from pipeline.wire.messages import ChunkHead

Leg = tuple[int, int]
"""Trajectory, and number of its leg."""


class FrameLost(Exception):
    """The engine's frames have a gap: the order of this run cannot be kept."""


@dataclass(slots=True)
class _Waiting:
    """Tokens of one leg, from `offset` of its trajectory on."""

    offset: int
    tokens: bytearray = field(default_factory=bytearray)  # int32
    logprobs: bytearray = field(default_factory=bytearray)  # float32
    runs: list[list[int]] = field(default_factory=list[list[int]])  # [version, tokens], in order
    version: int = 0  # of the newest chunk
    finish: str = ""  # how it ended; the tokens may still wait
    aborted: bool = False
    scalars: list[ChunkHead] = field(default_factory=list[ChunkHead])
    """Chunks that came with a score or a prediction, which is of the tokens up to their end."""
    marked: int | None = None  # response tokens up to the first marker

    @property
    def count(self) -> int:
        return len(self.tokens) // 4


class LegQueue:
    """One epoch of one engine."""

    def __init__(self, engine: str, epoch: int) -> None:
        self._engine, self._epoch = engine, epoch
        self._legs: dict[Leg, _Waiting] = {}
        self._came = 0  # frames
        self._sent = self._sampled = 0  # frames and tokens that were handed over

    def begin(self, leg: Leg, offset: int) -> None:
        """A leg was requested, after so many tokens of the response."""
        self._legs[leg] = _Waiting(offset)

    def abort(self, legs: Iterable[Leg]) -> None:
        """The engine was asked to end these."""
        for leg in legs:
            if (waiting := self._legs.get(leg)) is not None:
                waiting.aborted = True

    def add(self, frame: Tokens) -> None:
        """A frame has come. Raises FrameLost if one before it has not."""
        if frame.epoch != self._epoch:
            return
        if frame.sequence != self._came:
            why = f"frame {frame.sequence} of {self._engine} came, {self._came} was due"
            raise FrameLost(f"debug.ordered: {why}")
        self._came += 1
        begin = 0
        for chunk in frame.chunks:
            end = begin + 4 * chunk.count
            waiting = self._legs.get((chunk.trajectory, chunk.leg))
            if waiting is not None:
                waiting.tokens += frame.tokens[begin:end]
                waiting.logprobs += frame.logprobs[begin:end]
                waiting.version = chunk.version
                if chunk.count:
                    waiting.runs.append([chunk.version, chunk.count])
                waiting.finish = chunk.finish
                if chunk.marked is not None:
                    waiting.marked = chunk.marked
                if chunk.score is not None or chunk.remaining is not None:
                    waiting.scalars.append(chunk)
            begin = end

    def waits(self, chunk_tokens: int) -> Iterator[Leg]:
        """Legs of which too little has come."""
        for leg, waiting in self._legs.items():
            if not waiting.finish and (waiting.aborted or waiting.count < chunk_tokens):
                yield leg

    def take_frame(self, chunk_tokens: int) -> Tokens | None:
        """The next tokens of every leg, in order of trajectory; None without legs."""
        chunks: list[ChunkHead] = []
        tokens, logprobs = bytearray(), bytearray()
        for leg, waiting in sorted(self._legs.items()):
            if waiting.aborted:
                head = ChunkHead(*leg, waiting.offset, 0, waiting.version, "abort")
            else:
                head = self._next_chunk(leg, waiting, chunk_tokens)
            chunks.append(head)
            tokens += waiting.tokens[: 4 * head.count]
            logprobs += waiting.logprobs[: 4 * head.count]
            del waiting.tokens[: 4 * head.count], waiting.logprobs[: 4 * head.count]
            waiting.offset += head.count
            self._sampled += head.count
            if head.finish:
                del self._legs[leg]
        if not chunks:
            return None
        self._sent += 1
        return Tokens(
            engine=self._engine,
            epoch=self._epoch,
            sequence=self._sent - 1,
            sampled=self._sampled,
            chunks=tuple(chunks),
            tokens=bytes(tokens),
            logprobs=bytes(logprobs),
        )

    @staticmethod
    def _next_chunk(leg: Leg, waiting: _Waiting, chunk_tokens: int) -> ChunkHead:
        """At most `chunk_tokens` tokens of one version; the finish rides on the last."""
        version, count = waiting.version, 0
        if waiting.runs:
            version, have = waiting.runs[0]
            while len(waiting.runs) > 1 and waiting.runs[1][0] == version:
                have += waiting.runs.pop(1)[1]
            count = min(have, chunk_tokens)
            waiting.runs[0][1] = have - count
            if have == count:
                del waiting.runs[0]
        finish = waiting.finish if count == waiting.count else ""
        score = remaining = None
        while waiting.scalars and _end(waiting.scalars[0]) <= waiting.offset + count:
            newest = waiting.scalars.pop(0)
            score = score if newest.score is None else newest.score
            remaining = newest.remaining
        marked = waiting.marked
        if marked is not None and not waiting.offset < marked <= waiting.offset + count:
            marked = None
        return ChunkHead(*leg, waiting.offset, count, version, finish, score, remaining, marked)


def _end(chunk: ChunkHead) -> int:
    return chunk.offset + chunk.count
