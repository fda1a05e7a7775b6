"""Numbers that an engine gives with its chunks: shown to the selector, newest first."""

from __future__ import annotations

import msgspec
import pytest

from pipeline.coordinator.candidates import begin_as_fork
from pipeline.coordinator.groups import Trajectory
from pipeline.wire.codec import decode_tokens, encode_message
from pipeline.wire.messages import ChunkHead, TokenBatch, WireError
from tests.pipeline.coordinator.bench import Bench


def say(bench: Bench, **scalars: float | None) -> None:
    head, numbers = bench.chunk(0, 2)
    bench.handle(bench.frame((msgspec.structs.replace(head, **scalars), numbers)))


def seen(bench: Bench) -> tuple[float | None, float | None]:
    bench.ask(0)
    [member] = [m for m in bench.selector.seen[-1][0].members if m.id == 0]
    return member.score, member.remaining


def test_the_newest_score_stays_and_a_prediction_is_that_of_the_newest_chunk() -> None:
    bench = Bench()
    bench.begin()
    assert seen(bench) == (None, None)
    say(bench, score=0.5, remaining=9.0)
    assert seen(bench) == (0.5, 9.0)
    say(bench, remaining=7.5)
    assert seen(bench) == (0.5, 7.5)
    say(bench)
    assert seen(bench) == (0.5, None)


def test_the_first_marker_stays_and_a_fork_has_it_if_it_holds_it() -> None:
    bench = Bench()
    bench.begin()
    say(bench, marked=2)
    say(bench, marked=None)
    say(bench, marked=6)
    bench.ask(0)
    assert [m.marked for m in bench.selector.seen[-1][0].members] == [2, None, None]
    early, late = (Trajectory(id=8 + at, group=0, member=3, max_tokens=24) for at in (1, 2))
    begin_as_fork(early, bench.member(0), 1)
    begin_as_fork(late, bench.member(0), 2)
    assert (early.marked, late.marked) == (None, 2)


@pytest.mark.parametrize("score, remaining", [(float("nan"), None), (None, -1.0), (1e13, None)])
def test_a_scalar_that_is_none_is_refused_with_its_frame(
    score: float | None, remaining: float | None
) -> None:
    head = ChunkHead(1, 0, 0, 0, 0, "stop", score, remaining)
    batch = TokenBatch(
        engine="e0", incarnation=0, epoch=0, sequence=0, sampled=0, sent_at_s=0.0, chunks=(head,)
    )
    with pytest.raises(WireError, match="does not decode"):
        decode_tokens([encode_message(batch), b"", b""], 24)
