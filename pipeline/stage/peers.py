"""Peers that are connected to the stage, and whether they live and move.

Two clocks: *alive*, the heartbeat of a thread, and *progress*, a counter that
the working loop moves, allowed to stand still for a budget that the sender
declares. A stage that was itself late gives its peers the same grace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pipeline.coordinator.groups import IllegalTransition
from pipeline.hardware.latency_model import LatencyModel
from pipeline.stage.rejected_frames import RejectedFrames
from pipeline.wire.clock_sync import PeerClock, boot_id
from pipeline.wire.messages import PROTOCOL, Heartbeat, Join

MOST_PEERS = 4096
"""Connected at once; more are refused."""
_OF_A_RANK = re.compile(r"l\d+")


class PeerState(StrEnum):
    """States of a peer. They are ours alone: nothing that it sends is taken for one."""

    CONNECTED = "connected"  # its join was accepted
    WELCOMED = "welcomed"  # the coordinator knows of it
    GONE = "gone"


class PeerEvent(StrEnum):
    WELCOME = "welcome"
    LEAVE = "leave"


PEER_TRANSITIONS: dict[PeerState, dict[PeerEvent, PeerState]] = {
    PeerState.CONNECTED: {
        PeerEvent.WELCOME: PeerState.WELCOMED,
        PeerEvent.LEAVE: PeerState.GONE,
    },
    PeerState.WELCOMED: {PeerEvent.LEAVE: PeerState.GONE},
    PeerState.GONE: {},
}


@dataclass(slots=True)
class Peer:
    """One process, from its join to its loss."""

    identity: bytes
    join: Join
    epoch: int
    heard: float
    clock: PeerClock
    progress: int = -1
    state: PeerState = PeerState.CONNECTED
    moved: float = 0.0
    activity: str = "joined"  # what it says that it does: for people, no decision rests on it
    budget_s: float = 0.0

    @property
    def name(self) -> str:
        return self.join.name

    def advance(self, event: PeerEvent) -> None:
        """Move along the table. Raises IllegalTransition and changes nothing."""
        legal = PEER_TRANSITIONS[self.state]
        if event not in legal:
            raise IllegalTransition(f"peer {self.name}", event, self.state, legal)
        self.state = legal[event]


class Peers:
    """All peers by identity, and the newest of each name.

    Args:
        limits_s: role -> how long one of it may be silent.
    """

    def __init__(self, limits_s: Mapping[str, float]) -> None:
        self._limits_s = limits_s
        self.by_identity: dict[bytes, Peer] = {}
        self.rejected_frames = RejectedFrames()
        self._by_name: dict[str, Peer] = {}
        self._epochs: dict[str, int] = {}

    def named(self, name: str) -> Peer | None:
        return self._by_name.get(name)

    def with_role(self, role: str) -> list[Peer]:
        return [p for p in self.by_identity.values() if p.join.role == role]

    def enter(self, identity: bytes, join: Join, now: float) -> Peer:
        """A new process; its epoch is one more than its predecessor's."""
        epoch = self._epochs.get(join.name, -1) + 1
        self._epochs[join.name] = epoch
        clock = PeerClock(join.clock_s, now, same=join.boot != "" and join.boot == boot_id())
        peer = Peer(identity=identity, join=join, epoch=epoch, heard=now, clock=clock, moved=now)
        self.by_identity[identity] = self._by_name[join.name] = peer
        return peer

    def leave(self, peer: Peer) -> None:
        if self.by_identity.pop(peer.identity, None) is not None:
            peer.advance(PeerEvent.LEAVE)
        if self._by_name.get(peer.name) is peer:
            del self._by_name[peer.name]

    def beat(self, peer: Peer, beat: Heartbeat, now: float) -> None:
        if beat.progress != peer.progress or beat.activity != peer.activity:
            peer.progress, peer.moved = beat.progress, now
        peer.activity, peer.budget_s = beat.activity, beat.budget_s
        if beat.echo_s:
            peer.clock.add_heartbeat(now, beat.clock_s, beat.echo_s, beat.held_s)

    def silent(self, now: float) -> list[Peer]:
        """Peers whose thread has not been heard of for longer than their role may be silent."""
        return [p for p in self.by_identity.values() if now - p.heard > self._limits_s[p.join.role]]

    def stuck(self, now: float) -> list[Peer]:
        """Peers that are alive but stand still for longer than they said they might."""
        return [p for p in self.by_identity.values() if p.budget_s and now - p.moved > p.budget_s]

    def extend_deadlines(self, seconds: float) -> None:
        """The stage was late by this much: no peer is to blame for it."""
        for peer in self.by_identity.values():
            peer.heard += seconds
            peer.moved += seconds


def complaint(join: Join, ranks: int, vocabulary: int, resumed_step: int, longest: int = 0) -> str:
    """Returns why this process cannot take part in the run; '' if it can.

    Args:
        ranks: learner ranks of the run.
        vocabulary: rows of the model's embedding.
        resumed_step: step of the checkpoint that the run resumes from, -1 for none.
        longest: tokens of the longest prompt and its longest response together.
    """
    if join.protocol != PROTOCOL:
        return f"it speaks protocol {join.protocol}, this run {PROTOCOL}: mixed installations"
    if join.role not in ("engine", "learner"):
        return f"no role {join.role!r:.80}"
    if join.role == "engine" and _OF_A_RANK.fullmatch(join.name):
        return f"{join.name} is the name of a learner rank"
    if 0 < join.max_model_tokens < longest:
        return (
            f"it takes {join.max_model_tokens} tokens, the longest prompt and "
            f"its longest response (sampling.max_tokens, eval.max_tokens) are {longest}"
        )
    if join.vocabulary and join.vocabulary != vocabulary:
        return f"its model has {join.vocabulary} tokens, this run's {vocabulary}"
    if join.role == "engine" and not join.slots:
        return "it offers no slot"
    if join.latency:
        try:
            LatencyModel(join.latency)
        except ValueError as error:
            return str(error)
    if join.role == "learner":
        if join.world != ranks:
            return f"it is one of {join.world} ranks, learner.ranks is {ranks}"
        if join.rank >= ranks:
            return f"it is rank {join.rank}, the ranks are 0 to {ranks - 1}"
        if join.name != f"l{join.rank}":
            return f"it is rank {join.rank}, but its name is {join.name}"
        if join.resumed_step != resumed_step:
            return f"it starts from step {join.resumed_step}, the run from {resumed_step}"
    return ""
