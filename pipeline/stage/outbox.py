"""Messages to peers by name, rank or all; one that cannot be reached is reported as lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from pipeline.config.schema import Config
from pipeline.coordinator import events
from pipeline.coordinator.events import AnyCommand, DropStream, StreamTokens
from pipeline.data.dataset import Dataset
from pipeline.stage.peers import Peer, Peers
from pipeline.stage.translate import request_of
from pipeline.wire.fields import Drawing
from pipeline.wire.messages import Generate, Request, StreamedChunk, StreamedTokens, ToPeer
from pipeline.wire.server import StageServer, Unreachable


class Outbox:
    """`lost(peer, why)` is called for a peer that is gone."""

    def __init__(
        self, server: StageServer, peers: Peers, lost: Callable[[Peer, str], None]
    ) -> None:
        self._server, self._peers, self._lost = server, peers, lost

    def send(self, peer: Peer, message: ToPeer) -> None:
        try:
            self._server.send(peer.identity, message)
        except Unreachable as error:
            self._lost(peer, str(error))

    def to(self, name: str, message: ToPeer) -> None:
        """Sends to a peer that may be gone: then its loss is known already."""
        peer = self._peers.named(name)
        if peer is not None:
            self.send(peer, message)

    def to_rank(self, rank: int, message: ToPeer) -> None:
        for peer in self._peers.with_role("learner"):
            if peer.join.rank == rank:
                self.send(peer, message)

    def to_learners(self, message: ToPeer) -> None:
        for peer in self._peers.with_role("learner"):
            self.send(peer, message)

    def to_all(self, message: ToPeer) -> None:
        for peer in list(self._peers.by_identity.values()):
            self.send(peer, message)

    def send_best_effort(self, identity: bytes, message: ToPeer) -> None:
        """Sends to a peer that is to end; it may be gone already."""
        with contextlib.suppress(Unreachable):
            self._server.send(identity, message)


_GREEDY = Drawing(temperature=0.0)


def drawings_of(config: Config) -> dict[str, Drawing]:
    """Kind of group -> how its tokens are drawn: for training from all of them, since a cut-off
    distribution is not the one whose probabilities the learner computes."""
    training, given = config.sampling, config.eval
    temperature = training.temperature if given.temperature is None else given.temperature
    return {
        "train": Drawing(temperature=training.temperature),
        "eval": Drawing(
            temperature=temperature, top_p=given.top_p, top_k=given.top_k, min_p=given.min_p
        ),
    }


class CommandBatch:
    """Collects messages of one answer of the coordinator. Streamed tokens go before the rest of
    the answer (a group may be trained on in it), requests after it.

    Args:
        data, drawings: prompts, and how responses are drawn, by kind of group.
    """

    def __init__(self, data: dict[str, Dataset], drawings: dict[str, Drawing]) -> None:
        self._data, self._drawings = data, drawings
        self._requests: dict[str, list[Request]] = {}
        self._chunks: dict[int, list[StreamedChunk]] = {}
        self._gone: dict[int, list[int]] = {}
        self._prompts: dict[int, dict[int, bytes]] = {}
        self._own: dict[int, dict[int, bytes]] = {}  # trajectory -> prompt, with a variant

    def add(self, command: AnyCommand) -> bool:
        """Adds the command if it fits; returns True if it was taken."""
        match command:
            case events.Generate(engine=engine, kind=kind, prompt=prompt):
                tokens = self._data[kind].prompt_tokens(prompt, command.variant)
                drawing = _GREEDY if command.greedy else self._drawings[kind]
                request = request_of(command, tokens, drawing)
                self._requests.setdefault(engine, []).append(request)
            case StreamTokens(rank=rank):
                chunk = StreamedChunk(
                    command.group, command.trajectory, command.offset, command.tokens
                )
                self._chunks.setdefault(rank, []).append(chunk)
                prompt = self._data["train"].prompt_tokens(command.prompt, command.variant)
                prompts = self._own if command.variant else self._prompts
                of = command.trajectory if command.variant else command.group
                prompts.setdefault(rank, {})[of] = prompt
            case DropStream(rank=rank, trajectories=trajectories):
                self._gone.setdefault(rank, []).extend(trajectories)
            case _:
                return False
        return True

    def send_requests(self, outbox: Outbox) -> None:
        for engine, requests in self._requests.items():
            outbox.to(engine, Generate(requests=tuple(requests)))

    def send_hints(self, outbox: Outbox) -> None:
        for rank in sorted({*self._chunks, *self._gone}):
            outbox.to_rank(
                rank,
                StreamedTokens(
                    prompts=self._prompts.get(rank, {}),
                    own=self._own.get(rank, {}),
                    chunks=tuple(self._chunks.get(rank, ())),
                    gone=tuple(self._gone.get(rank, ())),
                    sent_at_s=time.monotonic(),
                ),
            )
