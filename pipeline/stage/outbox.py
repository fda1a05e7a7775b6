"""Messages to peers by name, rank or all; one that cannot be reached is reported as lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from pipeline.stage.peers import Peer, Peers
from pipeline.wire.messages import ToPeer
from pipeline.wire.server import Hub, Unreachable


class Outbox:
    """`lost(peer, why)` is called for a peer that is gone."""

    def __init__(self, hub: Hub, peers: Peers, lost: Callable[[Peer, str], None]) -> None:
        self._hub, self._peers, self._lost = hub, peers, lost

    def send(self, peer: Peer, message: ToPeer) -> None:
        try:
            self._hub.send(peer.identity, message)
        except Unreachable as error:
            self._lost(peer, str(error))

    def to(self, name: str, message: ToPeer) -> None:
        """To a peer that may be gone: then its loss is known already."""
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

    def last_word(self, identity: bytes, message: ToPeer) -> None:
        """To one that is to end: if it is gone already, so much the better."""
        with contextlib.suppress(Unreachable):
            self._hub.send(identity, message)
