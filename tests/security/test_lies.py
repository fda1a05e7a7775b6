"""Frames that decode and lie: whatever an engine claims, nothing raises and no figure is NaN."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.coordinator import events
from pipeline.coordinator.events import (
    AnyCommand,
    AnyEvent,
    LoadWeights,
    Report,
    RequestReward,
    Restart,
    Tick,
)
from pipeline.coordinator.groups import TrajectoryState
from pipeline.observability import timing
from pipeline.observability.chrome_trace import Tracer
from pipeline.observability.spans import StepRecord
from pipeline.plugins.selectors.first_m import FirstM
from pipeline.stage.peers import Peers
from pipeline.stage.rejected_frames import MOST, WITHIN_S, RejectedFrames
from pipeline.stage.translate import event_of, role_violation, to_stage_clock, tokens_event
from pipeline.wire.messages import (
    CLOSE,
    FORWARD_BACKWARD,
    ChunkHead,
    GroupTrained,
    Heartbeat,
    Join,
    LegTimes,
    Manifest,
    Published,
    Span,
    StepDone,
    TokenBatch,
    WeightsLoaded,
)
from tests.pipeline.coordinator.bench import Bench, only
from tests.pipeline.wire.test_messages import batch

ENGINE = Join(protocol=2, role="engine", name="e0", slots=4)
LEARNER = Join(protocol=2, role="learner", name="l0")
MOMENTS = (0.0, -1e12, 1e12, -1.0, 3.0, 1e-9)


def numbers(found: Any) -> Iterator[float]:
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list | tuple):
        for item in found:
            yield from numbers(item)
    elif isinstance(found, float):
        yield found


class Watched(Bench):
    """A bench whose every event is traced too; rewards and the learner answer at once."""

    def __init__(self, rng: random.Random) -> None:
        self.tracer, self._rng = Tracer(), rng
        self.records: list[StepRecord] = []
        super().__init__(FirstM(), candidates=4, need=2, steps=1000)

    def handle(self, event: AnyEvent) -> list[AnyCommand]:
        commands = super().handle(event)
        self.records += self.tracer.record_event(self.now, event, commands)
        for judge in only(commands, RequestReward):
            self.reward(judge.trajectory, self._rng.random())
        self.learn(commands)
        for serve in only(commands, LoadWeights):
            self.handle(events.WeightsLoaded(engine=serve.engine, version=serve.version, gap=0.0))
        return commands


def lie(bench: Bench, rng: random.Random) -> TokenBatch:
    """A frame that an engine could send: right numbers in it, wrong claims about them."""
    engine = bench.coordinator.scheduler.engines["e1"]
    known = list(bench.core.trajectories.values())
    chunks: list[ChunkHead] = []
    for _ in range(rng.randrange(4)):
        of = rng.choice(known)
        head = ChunkHead(
            trajectory=rng.choice((of.id, of.id, of.id, of.id + 1, 2**53)),
            leg=rng.choice((of.leg, of.leg, 0, 2**53)),
            offset=rng.choice((of.held, of.held, of.held, 0, 20, 2**53)),
            count=rng.choice((0, 1, 3, 30)),
            version=rng.choice((bench.core.version, 0)),
            finish=rng.choice(("", "", "stop", "stop", "length", "abort", "error")),
        )
        chunks.append(head)
    times = tuple(
        LegTimes(chunk.trajectory, chunk.leg, *rng.choices(MOMENTS, k=3)) for chunk in chunks
    )
    return batch(
        *chunks,
        engine="e1",
        epoch=engine.epoch,
        sequence=engine.next_sequence,
        sampled=engine.sampled + sum(chunk.count for chunk in chunks) + rng.choice((0, 0, 5)),
        sent_at_s=rng.choice(MOMENTS),
        times=times,
    )


@pytest.mark.fault(
    "an engine lies about legs, offsets, counts, ends and clocks", part="engines", by="direct"
)
@pytest.mark.parametrize("seed", range(6))
def test_an_engine_that_lies_harms_no_book_no_trace_and_no_figure(seed: int) -> None:
    """Promise: training goes on with the others, and every figure and moment in records and trace
    stays a number that can be.
    Bound: 200 frames of lies from each of six seeds.
    """
    rng = random.Random(seed)
    bench = Watched(rng)
    bench.begin(engines=2, slots=4)
    for _ in range(200):
        header = lie(bench, rng)
        total = sum(chunk.count for chunk in header.chunks)
        tokens, logprobs = np.full(total, 5, "<i4"), np.full(total, -0.5, "<f4")
        offset = rng.choice((0.0, 0.0, 1e12, -1e12))
        event = tokens_event(header, tokens, logprobs, bench.now, offset)
        assert 0 <= event.sent_s <= bench.now
        bench.handle(event)
        rank, moment = rng.randrange(3), rng.choice(MOMENTS)
        groups = tuple(rng.sample((*range(30), 2**53), rng.randrange(4)))
        asked = tuple(rng.choices(MOMENTS, k=rng.randrange(4)))
        what = rng.choice((FORWARD_BACKWARD, CLOSE, "rest"))
        spans = [Span(what, moment, rng.choice(MOMENTS), groups, asked)]
        here = [to_stage_clock(span, bench.now, offset) for span in spans]
        bench.tracer.timeline.record_work(rank, here)
        bench.tracer.timeline.weights_loaded("e1", here)
        bench.handle(Tick())
        for member in [t for t in bench.core.trajectories.values() if t.engine == "e0"]:
            if member.engine == "e0":
                bench.tokens(member.id, 2, rng.choice(("", "stop")))
        if "e1" not in bench.coordinator.scheduler.engines:
            bench.join("e1", 4)
    assert bench.core.step > 5  # the lies that are no lies still train
    assert len(bench.records) == bench.core.step
    for record in [*bench.records, bench.tracer.timeline.rest()]:
        assert all(map(math.isfinite, numbers(timing.timing_metrics(record, 2))))
        for leg in record.legs:
            assert all(0 <= t <= bench.now for t in (leg.begun, leg.first, leg.last))
        assert sum(piece.seconds for piece in record.path) <= record.end - record.since + 1e-6
    assert all(map(math.isfinite, numbers(bench.tracer.trace_document())))
    assert all(map(math.isfinite, numbers([c.fields for c in only(bench.everything, Report)])))


@pytest.mark.fault("an engine sends tokens for another engine's leg", part="engines", by="direct")
def test_an_engine_cannot_touch_the_legs_of_another() -> None:
    """Promise: the leg stays as it is; the tokens are counted as aborted.
    Bound: at that frame.
    """
    bench = Bench(candidates=2)
    bench.begin(engines=2, slots=1)
    theirs = next(t for t in bench.core.trajectories.values() if t.engine == "e1")
    bench.tokens(theirs.id, 3, "stop", engine="e0")
    assert (theirs.state, theirs.held) == (TrajectoryState.RUNNING, 0)
    assert set(bench.coordinator.scheduler.engines["e1"].legs) == {(theirs.id, 0)}
    assert bench.accounts == {"aborted": 3}


@pytest.mark.fault("an engine samples past the limit", part="engines", by="direct")
def test_more_tokens_than_were_asked_for_are_refused_until_the_member_is_given_up() -> None:
    """Promise: no such chunk is kept, and the trajectory is given up.
    Bound: three chunks.
    """
    bench = Bench()
    bench.begin()
    for _ in range(3):
        bench.tokens(0, 25)  # sampling.max_tokens is 24 there
        assert 0 not in bench.core.trajectories or bench.member(0).held == 0
    assert 0 not in bench.core.trajectories
    assert bench.accounts["aborted"] == 75


@pytest.mark.fault("tokens of a version that was never published", part="engines", by="direct")
def test_a_version_that_was_never_published_loses_the_engine() -> None:
    """Promise: the engine is started again, and none of these tokens is counted.
    Bound: at that frame.
    """
    bench = Bench()
    bench.begin()
    [restart] = only(bench.tokens(0, 3, version=7), Restart)
    assert restart.why == "it says it serves version 7, the newest is 0"
    assert bench.accounts == {}


@pytest.mark.fault("an engine's proof is NaN, infinite or negative", part="engines", by="direct")
@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf, -1.0])
def test_a_proof_that_is_no_number_admits_no_engine(gap: float) -> None:
    """Promise: it is not among those that get requests.
    Bound: at once.
    """
    bench = Bench()
    bench.begin(engines=0)
    bench.coordinator.scheduler.join("e0", 0, 8)
    event = event_of("e0", 0, WeightsLoaded(version=0, gaps={"1.0": 0.0, "0.7": gap}))
    assert isinstance(event, events.WeightsLoaded)
    bench.handle(event)
    assert bench.coordinator.scheduler.serving() == []


def test_metrics_that_are_no_numbers_are_left_out() -> None:
    metrics = {"loss": math.nan, "entropy": 0.5, "ratio_max": math.inf}
    event: Any = event_of("l0", 0, GroupTrained(step=0, group=1, tokens=5.0, metrics=metrics))
    assert event.metrics == {"entropy": 0.5}


def manifest(version: int = 1, directory: str = "/w/v1") -> Manifest:
    return Manifest(
        version=version, directory=directory, bytes=1, checksum="", probe=[], logprobs={}
    )


def done(version: int = 1, given: Manifest | None = None) -> StepDone:
    return StepDone(step=0, version=version, manifest=given)


@pytest.mark.parametrize(
    "join,message,why",
    [
        (ENGINE, GroupTrained(step=0, group=0, tokens=1.0), "no message of role engine"),
        (ENGINE, Published(manifest=manifest()), "no message of role engine"),
        (LEARNER, WeightsLoaded(version=0, gaps={}), "no message of role learner"),
        (LEARNER, done(), "of rank 0 without a manifest"),
        (LEARNER, done(7, manifest(7)), "of version 7, 1 was due"),
        (LEARNER, done(1, manifest(2)), "of version 1 with the manifest of 2"),
        (LEARNER, done(1, manifest(1, "/etc")), "weights in '/etc', not in /w"),
        (LEARNER, done(1, manifest(1, "/w/..")), "weights in '/w/..', not in /w"),
        (LEARNER, Published(manifest=manifest(3)), "of version 3, 0 was due"),
        (msgspec.structs.replace(LEARNER, rank=1), done(1, manifest()), "of rank 1: rank 0"),
    ],
)
def test_a_peer_says_only_what_its_role_and_the_run_allow(
    join: Join, message: Any, why: str
) -> None:
    assert why in role_violation(join, message, ["/w", "/spare"], 0)


@pytest.mark.parametrize(
    "join,message",
    [
        (ENGINE, WeightsLoaded(version=0, gaps={})),
        (LEARNER, done(1, manifest())),
        (msgspec.structs.replace(LEARNER, rank=1), done(1)),
        (LEARNER, Heartbeat(progress=0, activity="idle", budget_s=0.0)),
    ],
)
def test_what_belongs_to_a_role_is_heard(join: Join, message: Any) -> None:
    assert role_violation(join, message, ["/w", "/spare"], 0) == ""


def test_clocks_of_peers_may_be_absurd_but_stay_numbers() -> None:
    peers = Peers({"engine": 5.0, "learner": 5.0})
    peer = peers.enter(b"e0/1", msgspec.structs.replace(ENGINE, clock_s=-1e12), 100.0)
    for clock, echo, held in ((1e12, 1e-9, 0.0), (-1e12, 99.0, -5.0), (0.0, 1e12, 1e12)):
        peers.beat(
            peer,
            Heartbeat(
                progress=1, activity="x", budget_s=1.0, clock_s=clock, echo_s=echo, held_s=held
            ),
            101.0,
        )
        assert math.isfinite(peer.clock.offset_s)


@pytest.mark.fault("a peer goes on sending what is refused", part="wire", by="direct")
def test_ten_refused_frames_within_a_minute_are_too_many() -> None:
    """Promise: ten refused frames within a minute are too many for a named peer; the same over a
    longer time are not.
    Bound: the tenth frame.
    """
    refusals = RejectedFrames()
    slow = [refusals.note("tokens", "e0", "bad", n * WITHIN_S / 5) for n in range(2 * MOST)]
    assert not any(slow)
    fast = [refusals.note("tokens", "e1", "bad", 500.0) for _ in range(MOST)]
    assert fast == [False] * (MOST - 1) + [True]
    assert not any(refusals.note("control", "", "bad", 500.0) for _ in range(50))
    assert refusals.counts == {"tokens": 3 * MOST, "control": 50}


def test_refused_frames_are_told_of_once_a_second_with_their_number() -> None:
    refusals = RejectedFrames()
    assert refusals.line(0.0) == ""
    for n in range(3):
        refusals.note("tokens", "e0", f"bad {n}", 0.0)
    assert refusals.line(0.1) == (
        "tokens frame of e0 refused: bad 2 (2 more like it since the last line)"
    )
    refusals.note("control", "", "no message", 0.2)
    assert refusals.line(0.9) == ""
    assert refusals.line(1.2) == "control frame of somebody refused: no message"
    assert refusals.line(9.0) == ""


def test_strangers_without_number_take_no_memory() -> None:
    refusals = RejectedFrames()
    for number in range(5000):
        refusals.note("control", f"stranger {number}", "bad", 0.0)
    assert len(refusals._strikes) <= 1024
    assert json.dumps(refusals.counts) == '{"control": 5000}'
