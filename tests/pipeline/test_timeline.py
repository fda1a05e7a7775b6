"""Who did what when: legs, passes, loads; and the path that a step was as long as."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import timing
from pipeline.events import (
    FinishStep,
    Judge,
    Place,
    Report,
    RewardReady,
    Serve,
    StepApplied,
    Tick,
    Tokens,
    Train,
    Trained,
    WeightsServed,
)
from pipeline.messages import ChunkHead, LegTimes, Span, TrainMember
from pipeline.spans import StepRecord
from pipeline.timeline import Timeline


def place(trajectory: int, engine: str = "e0", since: float = 0.0) -> Place:
    return Place(
        engine=engine, kind="train", prompt=0, trajectory=trajectory, leg=0, prefix=b"",
        max_tokens=9, seed=0, since=since,
    )  # fmt: skip


def tokens(*chunks: ChunkHead, engine: str = "e0", sent: float = 0.0, times: Any = ()) -> Tokens:
    return Tokens(
        engine=engine, epoch=0, sequence=0, sampled=0, chunks=chunks, tokens=b"", logprobs=b"",
        sent_s=sent, times=tuple(times),
    )  # fmt: skip


def ended(trajectory: int, count: int = 5, finish: str = "stop") -> ChunkHead:
    return ChunkHead(trajectory, 0, 0, count, 1, finish)


def judge(trajectory: int) -> Judge:
    return Judge(kind="train", prompt=0, group=7, trajectory=trajectory, tokens=b"", finish="stop")


def train(group: int, *trajectories: int) -> Train:
    members = tuple(
        TrainMember(trajectory=t, response=b"", behaviour=b"", reward=1.0, advantage=1.0)
        for t in trajectories
    )
    return Train(rank=0, step=0, group=group, prompt=0, members=members)


def over(*members: tuple[int, str, bool], group: int = 7) -> Report:
    table = [[t, state, 5, -0.1, 1.0, trained, [1]] for t, state, trained in members]
    fields = {"group": group, "kind": "train", "fate": "trained", "members": table}
    return Report(what="group", fields=fields)


def step_over(seconds: float, step: int = 0) -> Report:
    return Report(what="step", fields={"step": step, "seconds": seconds})


def a_step(timeline: Timeline) -> StepRecord:
    """From 10 s on: weights 1 s, a trajectory 3 s, its reward 1 s, a pass 2 s, the close 1 s."""
    timeline.saw(10.0, Tick(), [Serve(engine="e0", version=1)], 10.1)
    timeline.loaded("e0", [Span("receiving weights", 10.2, 10.5, (1,)),
                           Span("loading weights", 10.5, 10.9, (1,))])  # fmt: skip
    timeline.saw(11.0, WeightsServed(engine="e0", version=1, gap=0.0), [place(1), place(2)], 11.1)
    times = [LegTimes(1, 0, 11.1, 11.2, 12.0)]
    timeline.saw(12.1, tokens(ended(1), sent=12.0, times=times), [judge(1)])
    times = [LegTimes(2, 0, 11.2, 11.5, 13.9)]
    timeline.saw(14.0, tokens(ended(2), sent=13.9, times=times), [judge(2)])
    timeline.saw(14.2, RewardReady(trajectory=1, value=1.0, times=(12.1, 14.1)), [])
    reward = RewardReady(trajectory=2, value=1.0, times=(14.1, 15.0))
    timeline.saw(15.0, reward, [train(7, 1, 2)])
    timeline.worked(0, [Span("forward and backward", 15.1, 17.0, (7,), 15.05)])
    finish = FinishStep(step=0, groups=(7,), normaliser=1.0)
    timeline.saw(17.0, Trained(rank=0, group=7, tokens=5.0), [finish])
    timeline.worked(0, [Span("optimizer step", 17.1, 17.8, (0,), 17.05),
                        Span("publishing weights", 17.8, 17.9)])  # fmt: skip
    applied = StepApplied(rank=0, step=0, version=2)
    commands = [over((1, "finished", True), (2, "finished", True)), step_over(8.0)]
    record = timeline.saw(18.0, applied, commands)
    assert record is not None
    return record


def test_the_path_leads_from_the_load_over_the_last_trajectory_and_its_reward_to_the_close():
    path = a_step(Timeline()).path
    assert [(s.lane, s.what, round(s.seconds, 3)) for s in path] == [
        ("stage", "deciding", 0.1),
        ("engine e0", "word of new weights on its way", 0.1),
        ("engine e0", "receiving weights", 0.3),
        ("engine e0", "loading weights", 0.4),
        ("stage", "word of the load on its way", 0.1),
        ("stage", "deciding", 0.1),
        ("engine e0", "request on its way", 0.1),
        ("engine e0", "to the first token", 0.3),
        ("engine e0", "decoding", 2.4),
        ("stage", "tokens on their way", 0.1),
        ("rewards", "waiting for a worker", 0.1),
        ("rewards", "scoring", 0.9),
        ("learner rank 0", "group on its way", 0.05),
        ("learner rank 0", "busy with its messages", 0.05),
        ("learner rank 0", "forward and backward", 1.9),
        ("learner rank 0", "close on its way", 0.1),
        ("learner rank 0", "optimizer step", 0.7),
        ("learner rank 0", "publishing weights", 0.1),
        ("stage", "word of the step on its way", 0.1),
    ]
    assert sum(s.seconds for s in path) == pytest.approx(8.0)
    assert path[8].detail == "trajectory 2, 5 tokens"


def kinds(record: StepRecord | None) -> list[tuple[str, str, float]]:
    assert record is not None
    return [(piece.what, piece.detail, round(piece.seconds, 6)) for piece in record.path]


def test_a_trajectory_that_waited_for_a_slot_hangs_on_the_one_that_freed_it():
    timeline = Timeline()
    timeline.saw(0.0, Tick(), [place(1)])
    timeline.saw(3.0, tokens(ended(1)), [place(2)])
    # a step without a close: as long as its two trajectories, one after the other
    record = timeline.saw(5.0, tokens(ended(2)), [step_over(5.0)])
    assert kinds(record) == [
        ("decoding", "trajectory 1, 5 tokens", 3.0),
        ("decoding", "trajectory 2, 5 tokens", 2.0),
    ]


def test_passes_one_after_another_are_on_the_path_together():
    """The second group came while the rank was busy: it waited for that, not for its tokens."""
    timeline = Timeline()
    timeline.saw(0.0, Tick(), [train(1), train(2)])
    timeline.worked(0, [Span("forward and backward", 0.0, 2.0, (1,), 0.0)])
    timeline.saw(2.0, Trained(rank=0, group=1, tokens=1.0), [])
    timeline.worked(0, [Span("forward and backward", 2.5, 5.0, (2,), 0.2)])
    finish = FinishStep(step=0, groups=(1, 2), normaliser=2.0)
    timeline.saw(5.0, Trained(rank=0, group=2, tokens=1.0), [finish])
    record = timeline.saw(6.0, StepApplied(rank=0, step=0, version=1), [step_over(6.0)])
    assert kinds(record) == [
        ("forward and backward", "group 1", 2.0),
        ("between passes", "", 0.5),
        ("forward and backward", "group 2", 2.5),
        ("optimizer, publish", "", 1.0),
    ]


def test_a_group_behind_work_that_nobody_asked_for_says_so():
    timeline = Timeline()
    timeline.saw(0.0, Tick(), [train(1)])
    timeline.worked(0, [Span("logprobs ahead", 0.0, 1.0),
                        Span("forward and backward", 1.0, 2.0, (1,), 0.5)])  # fmt: skip
    finish = FinishStep(step=0, groups=(1,), normaliser=1.0)
    timeline.saw(2.0, Trained(rank=0, group=1, tokens=1.0), [finish])
    record = timeline.saw(2.0, StepApplied(rank=0, step=0, version=1), [step_over(2.0)])
    assert ("busy with logprobs ahead", "", 0.5) in kinds(record)


def test_the_fate_of_a_leg_that_ends_after_its_group_is_known():
    timeline = Timeline()
    timeline.saw(0.0, Tick(), [place(1), place(2)])
    timeline.saw(1.0, tokens(ended(1)), [over((1, "finished", True), (2, "aborted", False))])
    timeline.saw(2.0, tokens(ended(2, finish="abort")), [])
    legs = {leg.trajectory: leg for leg in timeline.rest().legs}
    assert (legs[1].fate, legs[1].length, legs[1].group) == ("trained", 5, 7)
    assert (legs[2].fate, legs[2].heard) == ("aborted", 2.0)


def test_percentiles_are_of_what_was_measured():
    found = timing.figures(a_step(Timeline()), reward_workers=2)
    percentiles = found["percentiles"]
    assert percentiles["time_to_first_token_s"]["max"] == pytest.approx(0.4)
    assert percentiles["inter_token_s"]["max"] == pytest.approx(2.4 / 4)
    assert percentiles["reward_s"]["count"] == 2
    assert percentiles["reward_wait_s"]["max"] == pytest.approx(0.1)
    assert percentiles["chunk_to_stage_s"]["p50"] == pytest.approx(0.1)
    assert percentiles["last_token_to_trained_s"]["p50"] == pytest.approx(3.0)
    assert percentiles["weights_publish_s"]["max"] == pytest.approx(0.1)
    assert percentiles["learner_wait_s"]["max"] == pytest.approx(0.05)
    assert found["bubble_reward"] == pytest.approx(1 - (2.0 + 0.9) / (8.0 * 2))
    assert found["explained_share"] == pytest.approx(1.0)
    [straggler] = found["stragglers"]
    assert straggler["trajectory"] == 2
    assert straggler["waited_s"] == pytest.approx(14.0 - 12.1)


def test_lives_are_told_by_percentile_of_length():
    found = timing.figures(a_step(Timeline()))["lives"]
    assert sum(life["trajectories"] for life in found) == 2
    assert found[-1]["seconds"]["forward and backward"] == pytest.approx(1.9)


def test_nothing_is_kept_of_steps_that_are_over():
    """Slots handed from leg to leg for ever make no chain of links that grows."""
    timeline, now = Timeline(), 0.0
    timeline.saw(now, Tick(), [place(0)])
    for step in range(200):
        for trajectory in (2 * step, 2 * step + 1):
            now += 1.0
            timeline.saw(now, tokens(ended(trajectory)), [place(trajectory + 1)])
        timeline.saw(now, Tick(), [step_over(2.0, step)])
    [leg] = timeline._legs.values()
    length, link = 0, leg.asked
    while link is not None:
        length, link = length + 1, link.before
    assert length <= 6
