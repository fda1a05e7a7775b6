"""Clocks of other processes in ours."""

from __future__ import annotations

import math
from random import Random

from pipeline.stage.translate import leg_to_stage_clock, to_stage_clock, transit_s
from pipeline.wire.clock_sync import PeerClock, boot_id
from pipeline.wire.messages import LegTimes, Span


def test_within_one_boot_the_clocks_are_one():
    assert boot_id() == boot_id() != ""
    clock = PeerClock(100.0, 103.0, same=True)  # three seconds late in hearing of it
    clock.add_heartbeat(200.0, 195.0, 190.0, 1.0)
    assert clock.offset_s == clock.error_s == 0.0


def test_until_a_heartbeat_comes_the_join_tells_the_offset_and_nothing_bounds_its_error():
    clock = PeerClock(10.0, 500.0, same=False)
    assert clock.offset_s == 490.0
    assert math.isinf(clock.error_s)


def test_the_shortest_round_trip_tells_the_offset_within_half_of_itself():
    """Ways there and back of unlike length, a peer that answers late: an error of half a trip."""
    draw, truth = Random(0), 4321.0  # ours - theirs
    clock = PeerClock(0.0, truth + 0.3, same=False)
    now = 5000.0
    for _ in range(200):
        there, held, back = draw.expovariate(50), draw.uniform(0, 1), draw.expovariate(50)
        echo, now = now, now + there + held + back
        clock.add_heartbeat(now, now - back - truth, echo, held)
        assert abs(clock.offset_s - truth) <= clock.error_s
        now += 1.0
    assert clock.error_s < 0.005


def test_an_echo_that_cannot_be_is_left_out():
    clock = PeerClock(0.0, 10.0, same=False)
    clock.add_heartbeat(now=20.0, theirs=9.0, echo=19.0, held=5.0)  # held longer than the trip took
    assert clock.offset_s == 10.0


def test_what_a_peer_stamps_is_moved_into_our_clock():
    times = LegTimes(1, 0, 10.0, 0.0, 12.0)
    assert leg_to_stage_clock(times, 90.0, 0.0) == times
    moved = LegTimes(1, 0, 15.0, 0.0, 17.0)
    assert leg_to_stage_clock(times, 90.0, 5.0) == moved, "0.0 stays: no first token"
    span = Span("forward and backward", 1.0, 2.0, (7, 8), (0.5, 0.75))
    assert to_stage_clock(span, 90.0, 5.0) == Span(
        "forward and backward", 6.0, 7.0, (7, 8), (5.5, 5.75)
    )


def test_what_a_peer_stamps_lies_in_the_past_and_in_its_order():
    assert leg_to_stage_clock(LegTimes(1, 0, 30.0, 10.0, 20.0), 15.0, 0.0) == LegTimes(
        1, 0, 10, 10, 15
    )
    span = Span("close", 9.0, 99.0, (1,), (12.0,))
    assert to_stage_clock(span, 15.0, 0.0) == Span("close", 9.0, 15.0, (1,), (9.0,))
    assert to_stage_clock(span, 15.0, -50.0) == Span("close", 0.0, 15.0, (1,), (0.0,))
    assert transit_s(1e9, 3.0, 5.0, 1.0) == -1.0
