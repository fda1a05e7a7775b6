"""Computes what a rank sends back of tokens that a later version may train on.

Turns streamed logprobs into wire pieces, and `CloseVersion` into calls: of the stream where the
rank has one and its cache holds the response, else of whole responses. It stops when other work
waits: the stage does not wait longer than `close_s`, and counts what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from learner.step.passes import Passes
from learner.streaming.cached_forward import StreamedLogprobs
from learner.streaming.logprob_stream import ModelStream
from pipeline.wire.messages import (
    CloseVersion,
    OldLogprobs,
    Piece,
    StreamedChunk,
    TrainGroup,
    TrainMember,
)

MESSAGE_BYTES = 1 << 18
"""Logprobs of one message; with as many entropies half of what a report may hold."""


def pieces_of(scored: Iterable[StreamedLogprobs]) -> tuple[Piece, ...]:
    """Return the logprobs and entropies of a call as they travel."""
    return tuple(
        Piece(
            found.trajectory,
            found.offset,
            found.logprobs.astype("<f4").tobytes(),
            b"" if found.entropies is None else found.entropies.astype("<f4").tobytes(),
        )
        for found in scored
    )


def messages_of(version: int, pieces: Iterable[Piece]) -> Iterator[OldLogprobs]:
    """Pack pieces into messages far below what one may hold; a long piece becomes several."""
    packed: list[Piece] = []
    size = 0
    for piece in pieces:
        for begin in range(0, len(piece.logprobs), MESSAGE_BYTES):
            cut = slice(begin, begin + MESSAGE_BYTES)
            part = Piece(
                piece.trajectory,
                piece.first + begin // 4,
                piece.logprobs[cut],
                piece.entropies[cut],
            )
            if packed and size + len(part.logprobs) > MESSAGE_BYTES:
                yield OldLogprobs(version=version, pieces=tuple(packed))
                packed, size = [], 0
            packed.append(part)
            size += len(part.logprobs)
    if packed:
        yield OldLogprobs(version=version, pieces=tuple(packed))


class VersionCloser:
    """Closes versions for one rank. `own`: the stream of its own weights, or None."""

    def __init__(self, passes: Passes, own: ModelStream | None) -> None:
        self._passes, self._own = passes, own

    def close(self, order: CloseVersion, stop: Callable[[], bool]) -> Iterator[tuple[Piece, ...]]:
        """Compute the order's logprobs, call after call, until `stop` says so. Every rank has to
        run through it where passes communicate."""
        left = order.chunks
        if self._own is not None:
            wanted = {chunk.trajectory for chunk in order.chunks}
            for chunk in order.chunks:
                self._own.add_chunk(order.prompt_of(chunk), chunk)
            while self._own.has_pending(wanted) and not stop():
                yield pieces_of(self._own.run_call(first=wanted))
            lacking = set(self._own.lacking(wanted))
            left = tuple(chunk for chunk in order.chunks if chunk.trajectory in lacking)
        for found in self._passes.whole_logprobs(_groups(order, left), stop):
            yield tuple(Piece(name, 0, _bytes(values_T)) for name, values_T in found.items())


def _groups(order: CloseVersion, chunks: Iterable[StreamedChunk]) -> list[TrainGroup]:
    """Return whole responses as groups for a forward pass; nothing else of them is real."""
    members: dict[int, list[TrainMember]] = {}
    for chunk in chunks:
        member = TrainMember(
            trajectory=chunk.trajectory,
            response=chunk.tokens,
            behaviour=bytes(len(chunk.tokens)),
            reward=0.0,
            advantage=0.0,
            prompt=order.own.get(chunk.trajectory, b""),
        )
        members.setdefault(chunk.group, []).append(member)
    return [
        TrainGroup(step=0, group=group, prompt=order.prompts[group], members=tuple(found))
        for group, found in members.items()
    ]


def _bytes(values_T: Tensor) -> bytes:
    return values_T.to("cpu", torch.float32).numpy().astype("<f4").tobytes()
