"""Two clocks for each peer, epochs, and who may take part."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.coordinator.groups import IllegalTransition
from pipeline.stage.peers import Peer, PeerEvent, Peers, PeerState, complaint
from pipeline.wire.messages import PROTOCOL, Heartbeat, Join


def join(**changes: Any) -> Join:
    values: dict[str, Any] = dict(
        protocol=PROTOCOL, role="engine", name="e0", slots=4, vocabulary=24
    )
    return Join(**{**values, **changes})


def beat(progress: int, activity: str = "sampling", budget_s: float = 60.0) -> Heartbeat:
    return Heartbeat(progress=progress, activity=activity, budget_s=budget_s)


@pytest.fixture
def peers() -> Peers:
    return Peers({"engine": 5.0, "learner": 5.0})


@pytest.fixture
def peer(peers: Peers) -> Peer:
    return peers.enter(b"e0/1/aa", join(), 100.0)


@pytest.mark.fault("a process falls silent", part="engines", by="direct")
def test_a_peer_that_is_not_heard_is_silent(peers: Peers, peer: Peer) -> None:
    """Promise: it is found silent, and no longer once it is heard.
    Bound: its limit without a word (here 5 s).
    """
    assert peers.silent(105.0) == []
    assert peers.silent(105.1) == [peer]
    peer.heard = 104.0
    assert peers.silent(105.1) == []


@pytest.mark.fault("a process sends heartbeats and does nothing", part="engines", by="direct")
def test_a_peer_that_beats_but_does_not_move_is_stuck_after_its_own_budget(
    peers: Peers, peer: Peer
) -> None:
    """Promise: it is found stuck, and no longer once it moves.
    Bound: the budget that it gave for what it does (here 60 s).
    """
    peers.beat(peer, beat(1), 110.0)
    for now in (120.0, 150.0, 170.0):
        peers.beat(peer, beat(1), now)
        assert peers.stuck(now) == []
    assert peers.stuck(170.1) == [peer]
    peers.beat(peer, beat(2), 171.0)
    assert peers.stuck(200.0) == []


def test_a_new_activity_is_progress(peers: Peers, peer: Peer) -> None:
    peers.beat(peer, beat(1), 110.0)
    peers.beat(peer, beat(1, "loading weights", 5.0), 160.0)
    assert peers.stuck(164.0) == []
    assert peers.stuck(165.1) == [peer]


def test_without_a_budget_it_may_stand_still_for_ever(peers: Peers, peer: Peer) -> None:
    peers.beat(peer, beat(1, "idle", 0.0), 110.0)
    assert peers.stuck(1e9) == []


@pytest.mark.fault("the stage itself was held up", part="stage", by="direct")
def test_a_late_stage_gives_everybody_the_same_grace(peers: Peers, peer: Peer) -> None:
    """Promise: nobody counts as silent or stuck for as long as it was late.
    Bound: limit plus lateness (here 5 s and 30 s).
    """
    peers.beat(peer, beat(1, budget_s=5.0), 100.0)
    peers.extend_deadlines(30.0)
    assert peers.silent(134.0) == peers.stuck(134.0) == []
    assert peers.silent(135.1) == peers.stuck(135.1) == [peer]


def test_every_process_of_a_name_has_a_higher_epoch(peers: Peers, peer: Peer) -> None:
    peers.leave(peer)
    again = peers.enter(b"e0/2/bb", join(), 101.0)
    other = peers.enter(b"e1/3/cc", join(name="e1"), 101.0)
    assert (peer.epoch, again.epoch, other.epoch) == (0, 1, 0)
    assert peers.named("e0") is again


def test_who_left_is_found_no_more(peers: Peers, peer: Peer) -> None:
    peers.leave(peer)
    peers.leave(peer)
    assert peers.named("e0") is None
    assert peers.with_role("engine") == []
    assert peers.silent(1e9) == []


LEARNER = dict(role="learner", name="l0", slots=0)
MISFITS: list[tuple[dict[str, Any], str]] = [
    (dict(protocol=99), "protocol 99"),
    (dict(role="spy"), "no role 'spy'"),
    (dict(vocabulary=99), "99 tokens, this run's 24"),
    (dict(slots=0), "no slot"),
    (dict(LEARNER, world=3), "one of 3 ranks, learner.ranks is 2"),
    (dict(LEARNER, world=2, rank=2), "rank 2, the ranks are 0 to 1"),
    (dict(LEARNER, world=2, rank=1), "rank 1, but its name is l0"),
    (dict(name="l0"), "l0 is the name of a learner rank"),
    (dict(LEARNER, world=2, resumed_step=4), "from step 4, the run from -1"),
]


@pytest.mark.parametrize("changes,why", MISFITS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_process_that_does_not_fit_is_told_why(changes: dict[str, Any], why: str) -> None:
    assert why in complaint(join(**changes), ranks=2, vocabulary=24, resumed_step=-1)


@pytest.mark.parametrize(
    "changes", [{}, dict(vocabulary=0), dict(LEARNER, world=2, rank=1, name="l1")]
)
def test_a_process_that_fits_is_welcome(changes: dict[str, Any]) -> None:
    assert complaint(join(**changes), ranks=2, vocabulary=24, resumed_step=-1) == ""


def test_a_peers_state_moves_along_its_table_and_not_by_what_it_says(
    peers: Peers, peer: Peer
) -> None:
    assert peer.state is PeerState.CONNECTED
    peer.advance(PeerEvent.WELCOME)
    peers.beat(peer, beat(1, activity="joined"), 101.0)
    assert (peer.state, peer.activity) == (PeerState.WELCOMED, "joined")
    with pytest.raises(IllegalTransition, match="peer e0: welcome while welcomed; legal: leave"):
        peer.advance(PeerEvent.WELCOME)
    peers.leave(peer)
    assert peer.state is PeerState.GONE
    peers.leave(peer)  # once more changes nothing
