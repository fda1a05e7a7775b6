"""Frames and legs: what counts, what is late, what makes an engine lost."""

from __future__ import annotations

import pytest

from pipeline.coordinator.events import AbortLegs, EngineLost, RequestReward, Restart
from pipeline.coordinator.groups import TrajectoryState
from pipeline.hardware.latency_model import LatencyModel
from pipeline.plugins.actions import Abort, Finalize, Park, Stop
from pipeline.plugins.interfaces import Every, Finish
from tests.pipeline.coordinator.bench import EOS, Bench, Scripted, only, placed


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.begin()
    return bench


def test_chunks_of_one_leg_grow_their_trajectory_in_order(bench: Bench) -> None:
    bench.tokens(0, 3, last=7)
    bench.tokens(0, 2, last=9)
    member = bench.member(0)
    assert list(memoryview(member.tokens).cast("i")) == [5, 5, 7, 5, 9]
    assert member.confidence == -0.5
    assert member.versions == [0]
    assert bench.accounts == {"open": 5}


def test_a_stop_finishes_a_length_truncates_and_both_are_judged(bench: Bench) -> None:
    [judge] = only(bench.tokens(0, 3, "stop"), RequestReward)
    assert (judge.trajectory, judge.finish, len(judge.tokens)) == (0, "stop", 12)
    [judge] = only(bench.tokens(1, 24, "length"), RequestReward)
    assert (judge.trajectory, judge.finish) == (1, "length")
    assert bench.member(0).state is TrajectoryState.FINISHED
    assert bench.member(1).state is TrajectoryState.TRUNCATED
    assert bench.group(0).arrivals == [0, 1]


def test_the_selector_hears_of_an_end_once(bench: Bench) -> None:
    bench.tokens(0, 3, "stop")
    assert [e for _, e in bench.selector.seen if isinstance(e, Finish)] == [Finish(0)]


def test_every_n_tokens_are_told_to_a_selector_that_wants_them() -> None:
    bench = Bench(Scripted(every=4))
    bench.begin()
    for count in (3, 3, 1, 9):  # 3, 6, 7, 16 tokens
        bench.tokens(0, count)
    assert [e for _, e in bench.selector.seen] == [Every(0), Every(0)]


@pytest.mark.fault("tokens come after their leg was ended", part="wire", by="direct")
def test_tokens_of_an_ended_leg_are_late_and_go_to_aborted(bench: Bench) -> None:
    """Promise: they are counted as aborted, and change nothing.
    Bound: at that chunk.
    """
    bench.tokens(0, 3)
    bench.ask(0, Stop((0,)))
    bench.tokens(0, 4, "abort", leg=0, offset=3)
    assert bench.member(0).held == 3
    assert bench.accounts == {"open": 3, "aborted": 4}
    assert bench.core.ledger.chunks_late == 1


def test_tokens_of_an_unknown_trajectory_are_late_and_counted(bench: Bench) -> None:
    bench.tokens(99, 4)
    assert bench.accounts == {"aborted": 4}


@pytest.mark.fault("a chunk at the wrong place of its response", part="wire", by="direct")
@pytest.mark.parametrize("offset", [1, 7], ids=["duplicate", "gap"])
def test_a_chunk_at_the_wrong_offset_is_never_applied_and_the_leg_is_resumed(
    bench: Bench, offset: int
) -> None:
    """Promise: it is not applied; the leg ends and is resumed from the tokens held.
    Bound: at that chunk.
    """
    bench.tokens(0, 3)
    commands = bench.tokens(0, 2, offset=offset)
    assert only(commands, AbortLegs) == [AbortLegs(engine="e0", legs=((0, 0),))]
    assert placed(commands) == [(0, 1)]
    assert bench.member(0).held == 3
    assert bench.accounts == {"open": 3, "aborted": 2}


def test_a_gap_after_the_last_token_ends_the_trajectory_instead_of_resuming_it(
    bench: Bench,
) -> None:
    bench.tokens(0, 24)  # its maximum, and the frame that said so in band was wrong
    commands = bench.tokens(0, 2, offset=30)
    assert placed(commands) == []
    assert bench.member(0).state is TrajectoryState.TRUNCATED


@pytest.mark.fault("a token frame of another process of the engine", part="wire", by="direct")
def test_a_frame_of_another_epoch_is_refused(bench: Bench) -> None:
    """Promise: it is refused and counted; no token of it is kept.
    Bound: at that frame.
    """
    bench.handle(bench.frame(bench.chunk(0, 3), epoch=1, sequence=0))
    assert bench.accounts == {}
    assert bench.core.ledger.frames_refused == 1


@pytest.mark.fault("a token frame comes twice", part="wire", by="direct")
def test_a_frame_that_comes_twice_is_refused_the_second_time(bench: Bench) -> None:
    """Promise: the second one is refused and counted, and no token twice.
    Bound: at that frame.
    """
    frame = bench.frame(bench.chunk(0, 3))
    bench.handle(frame)
    bench.handle(frame)
    assert bench.accounts == {"open": 3}
    assert bench.core.ledger.frames_refused == 1


@pytest.mark.fault("a token frame is lost", part="wire", by="direct")
def test_a_lost_frame_loses_the_engine_and_restarts_it(bench: Bench) -> None:
    """Promise: the gap is seen, the engine is started again, and its trajectories wait with the
    tokens that came before the gap.
    Bound: at the next frame.
    """
    bench.tokens(0, 3)
    bench.frame(bench.chunk(0, 2))  # never arrives
    commands = bench.handle(bench.frame(bench.chunk(1, 2)))
    [restart] = only(commands, Restart)
    assert (restart.peer, restart.why) == ("e0", "frame 2 came, 1 was due")
    assert bench.member(0).state is TrajectoryState.QUEUED
    assert bench.member(0).held == 3
    assert bench.accounts == {"open": 3}


@pytest.mark.fault("an engine's own count of tokens is too low", part="wire", by="direct")
def test_an_engine_that_counts_less_than_it_sent_is_lost_and_the_books_balance(
    bench: Bench,
) -> None:
    """Promise: the engine is started again, and none of that frame's tokens is counted.
    Bound: at that frame.
    """
    bench.tokens(0, 3)
    commands = bench.handle(bench.frame(bench.chunk(0, 4), sampled=5))
    [restart] = only(commands, Restart)
    assert restart.why == "it counts 2 tokens fewer than it sent"
    assert bench.accounts == {"open": 3}


def test_tokens_that_were_sampled_but_never_sent_are_lost_and_counted(bench: Bench) -> None:
    bench.tokens(0, 3, last=5)
    bench.handle(bench.frame(bench.chunk(0, 2), sampled=9))
    assert bench.accounts == {"open": 5, "lost": 4}


def test_what_frames_show_of_an_engine_moves_the_latency_that_budgets_see() -> None:
    """Per window of a second: seconds since the token before of the same response, a token."""
    bench = Bench(candidates=2, max_tokens=500)
    bench.begin()
    expected, placed_at = LatencyModel(), bench.now
    bench.tokens(0, 10)  # the meter begins
    newest, leg_s, tokens = {0: bench.now, 1: placed_at}, bench.now - placed_at, 10
    for count in (40, 100, 20):
        bench.now += 1.5
        bench.handle(bench.frame(bench.chunk(0, count), bench.chunk(1, count)))
        leg_s += sum(bench.now - at for at in newest.values())
        expected.blend(2, leg_s / (tokens + 2 * count))
        newest, leg_s, tokens = dict.fromkeys(newest, bench.now), 0.0, 0
    assert bench.core.latency.points != LatencyModel().points
    for (_, found), (_, right) in zip(bench.core.latency.points, expected.points, strict=True):
        assert found == pytest.approx(right)


@pytest.mark.fault("an engine is lost while another has free slots", part="engines", by="direct")
def test_trajectories_of_a_lost_engine_are_requeued_with_the_tokens_received() -> None:
    """Promise: its trajectories go on there, with the tokens received.
    Bound: in the same event.
    """
    bench = Bench()
    bench.begin(engines=2, slots=4)
    on_first = [m.id for m in bench.group(0).members if m.engine == "e0"]
    bench.tokens(on_first[0], 3)
    commands = bench.handle(EngineLost(engine="e0", why="killed"))
    assert placed(commands) == [(i, 1) for i in on_first]
    assert bench.member(on_first[0]).held == 3
    assert bench.member(on_first[0]).engine == "e1"
    assert bench.warnings() == [
        f"engine e0 lost (killed); {len(on_first)} trajectories go on elsewhere"
    ]


@pytest.mark.fault(
    "an engine is lost between a last token and its finish", part="engines", by="direct"
)
@pytest.mark.parametrize(
    "count,last,state",
    [(3, EOS, TrajectoryState.FINISHED), (24, 5, TrajectoryState.TRUNCATED)],
    ids=["stop", "maximum"],
)
def test_a_lost_leg_that_holds_its_last_token_is_ended_not_resumed(
    bench: Bench, count: int, last: int, state: TrajectoryState
) -> None:
    """Promise: the trajectory has ended and stays so; it is not sampled past its end.
    Bound: in the same event.
    """
    bench.tokens(0, count, last=last)
    assert bench.member(0).state is TrajectoryState.RUNNING
    bench.handle(EngineLost(engine="e0", why="killed"))
    assert bench.member(0).state is state
    bench.join("e0")
    assert bench.member(0).state is state


def test_members_that_the_selector_ends_while_their_engine_is_lost_stay_ended(
    bench: Bench,
) -> None:
    """The first one's end makes the selector finalize: the others are gone by then."""
    bench.tokens(0, 3, "stop")
    bench.tokens(1, 3, last=EOS)
    bench.tokens(2, 3)
    bench.selector.say(0, Finalize((0, 1)))
    bench.handle(EngineLost(engine="e0", why="killed"))
    assert [m.state for m in bench.group(0).members] == [
        TrajectoryState.FINISHED,
        TrajectoryState.FINISHED,
        TrajectoryState.ABORTED,
    ]


@pytest.mark.fault("an engine ends a request with an error", part="engines", by="direct")
def test_a_leg_that_the_engine_ends_by_itself_is_resumed_and_given_up_after_three(
    bench: Bench,
) -> None:
    """Promise: it is resumed, and given up after three, with a warning; its tokens are counted as
    failed.
    Bound: three legs.
    """
    for leg in (0, 1):
        commands = bench.tokens(0, 2, "error")
        assert placed(commands) == [(0, leg + 1)]
    commands = bench.tokens(0, 2, "error")
    assert placed(commands) == []
    assert 0 not in bench.core.trajectories
    assert bench.accounts == {"failed": 6}
    assert bench.warnings() == ["trajectory 0: given up after errors of engines"]


def test_a_group_whose_every_member_was_given_up_is_dropped_and_replaced(bench: Bench) -> None:
    for _ in range(3):
        for trajectory in (0, 1, 2):
            bench.tokens(trajectory, 1, "error")
    assert bench.fate(0)[0] == "dropped"
    assert list(bench.core.groups) == [1]


@pytest.mark.parametrize("action", [Abort((0,)), Stop((0,)), Park((0,))], ids=lambda v: str(v))
def test_whatever_ends_a_leg_a_finish_that_crosses_it_on_the_wire_is_late(
    bench: Bench, action: Abort | Stop | Park
) -> None:
    bench.tokens(0, 3)
    finish = bench.frame(bench.chunk(0, 2, "stop"))
    bench.ask(0, action)
    bench.handle(finish)
    assert bench.core.ledger.chunks_late == 1
    assert 0 not in bench.core.trajectories or bench.member(0).held == 3


def test_several_chunks_in_a_frame_end_a_group_and_the_rest_is_late(bench: Bench) -> None:
    bench.tokens(0, 3, "stop")
    bench.selector.say(0, Finalize((0, 1)))
    bench.handle(bench.frame(bench.chunk(1, 3, "stop"), bench.chunk(2, 4)))
    assert bench.accounts == {"open": 6, "aborted": 4}
