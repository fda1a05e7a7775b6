"""Handles peers that are silent, stuck, disbelieved, dead, or sent away.

Whatever the reason, it is taken out of the peers once, the coordinator gets the loss as an
event, and the owner of its process ends it. What it held continues elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import EngineLost, LearnerLost
from pipeline.coordinator.run_state import RunPhase
from pipeline.stage.outbox import Outbox
from pipeline.stage.peers import Peer, Peers
from pipeline.wire.messages import Shutdown
from pipeline.wire.server import StageServer

log = logging.getLogger("stage")


class PeerMonitor:
    """`tell`: hears of a loss; `say`: to the launcher, which ends processes and starts others."""

    def __init__(
        self,
        coordinator: Coordinator,
        server: StageServer,
        peers: Peers,
        tell: Callable[[EngineLost | LearnerLost], None],
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._coordinator, self._server, self._peers = coordinator, server, peers
        self._tell, self._say = tell, say
        self.outbox = Outbox(server, peers, self.lose)

    def look(self, now: float) -> None:
        """Restarts peers that are silent or stuck. Called several times a second."""
        for peer in self._peers.silent(now):
            self.restart(peer.name, f"silent for {now - peer.heard:.1f} s")
        for peer in self._peers.stuck(now):
            why = f"{peer.activity!r} has stood still for {now - peer.moved:.0f} s"
            self.restart(peer.name, why)
        if line := self._peers.rejected_frames.line(now):
            log.warning("%s", line)

    def lose(self, peer: Peer, why: str) -> None:
        """Its process is not to be trusted any more; what it held continues elsewhere."""
        if peer.identity not in self._peers.by_identity:
            return
        self._peers.leave(peer)
        self._server.forget_peer(peer.identity)
        log.warning("%s lost: %s", peer.name, why)
        if peer.join.role == "engine":
            self._tell(EngineLost(engine=peer.name, why=why))
        else:
            self._tell(LearnerLost(rank=peer.join.rank, why=why))

    def dead(self, name: str, why: str) -> None:
        """The launcher has seen the process end."""
        peer = self._peers.named(name)
        if peer is not None:
            self.lose(peer, why)
        elif name.startswith("l") and self._coordinator.run.phase is not RunPhase.OVER:
            self._tell(LearnerLost(rank=int(name[1:] or 0), why=why))

    def restart(self, name: str, why: str) -> None:
        """Count it as lost, and have its process ended (a launcher starts another)."""
        peer = self._peers.named(name)
        if peer is not None:
            self.outbox.send_best_effort(peer.identity, Shutdown(why=why))
            self.lose(peer, why)
        self._say({"restart": name, "why": why})

    def refused(self, what: str, peer: Peer | None, why: object) -> None:
        """A frame is not believed. Who sends many such is not believed at all any more."""
        name = peer.name if peer is not None else ""
        learns = peer is not None and peer.join.role == "learner"  # or its step would never end
        if self._peers.rejected_frames.note(what, name, str(why), time.monotonic()) or learns:
            self.restart(name, f"its frames are not to be believed; the last: {why}")
