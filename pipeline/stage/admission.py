"""Validates join requests; admits the peer or refuses it with a reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pipeline.config.trained import learner_ranks
from pipeline.coordinator.events import EngineJoined, LearnerJoined
from pipeline.stage.build import Parts
from pipeline.stage.outbox import Outbox
from pipeline.stage.peers import MOST_PEERS, Peer, PeerEvent, Peers, PeerState, complaint
from pipeline.stage.translate import engine_joined
from pipeline.wire.messages import Join, Refused, TokenBatch, Welcome

log = logging.getLogger("stage")


class Admission:
    """Args:
    lose: called with a peer and a reason when its name belongs to a new process.
    say: sends a line to the launcher.
    """

    def __init__(
        self,
        parts: Parts,
        peers: Peers,
        outbox: Outbox,
        lose: Callable[[Peer, str], None],
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._parts, self._peers, self._outbox = parts, peers, outbox
        self._lose, self._say = lose, say

    def enter(self, identity: bytes, join: Join, now: float) -> EngineJoined | LearnerJoined | None:
        """Returns the event of a new peer; None if it was in already, is refused or gone."""
        peer = self._peers.by_identity.get(identity) or self._admit(identity, join, now)
        if peer is None:
            return None
        peer.heard = now
        welcome = Welcome(
            incarnation=self._parts.incarnation,
            epoch=peer.epoch,
            weights_directory=str(self._parts.weights),
            spare_directory=str(self._parts.spare_weights),
        )
        self._outbox.send(peer, welcome)
        if peer.state is not PeerState.CONNECTED:
            return None  # a repeated join of a peer that is at work, or one that is gone again
        peer.advance(PeerEvent.WELCOME)
        engine = join.role == "engine"
        return engine_joined(join, peer.epoch) if engine else LearnerJoined(rank=join.rank)

    def _admit(self, identity: bytes, join: Join, now: float) -> Peer | None:
        parts = self._parts
        ranks, vocabulary = learner_ranks(parts.config), parts.tokenizer.vocabulary
        problem = complaint(join, ranks, vocabulary, parts.resumed_step, parts.longest)
        if len(self._peers.by_identity) >= MOST_PEERS:
            problem = f"{MOST_PEERS} peers are connected already"
        if problem:
            log.error("%s refused: %s", join.name, problem)
            self._outbox.send_best_effort(identity, Refused(why=problem))
            self._say({"say": f"{join.name} refused: {problem}"})
            return None
        before = self._peers.named(join.name)
        if before is not None:
            self._lose(before, "a new process has its name")
        peer = self._peers.enter(identity, join, now)
        log.info("%s joined, epoch %d, %s", join.name, peer.epoch, join.about)
        return peer

    def sender(self, key: str, name: str) -> Peer | None:
        """The engine of this name, if a frame with this key may be its."""
        return (
            self._peers.named(name) if self._parts.server.admits_key(key, "engine", name) else None
        )

    def objection(self, key: str, header: TokenBatch) -> str:
        """Returns why a frame of tokens is refused, whatever is in it; '' if it is not."""
        if not self._parts.server.admits_key(key, "engine", header.engine):
            return f"its key is not that of {header.engine}"
        if header.incarnation != self._parts.incarnation:
            return "it is for another incarnation of the stage"
        return ""
