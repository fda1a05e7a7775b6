"""Who did what when: legs, passes, loads; and the path that a step was as long as."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.coordinator.events import (
    AnyEvent,
    CloseStep,
    Generate,
    GroupTrained,
    LoadWeights,
    Report,
    RequestReward,
    RewardReady,
    StepDone,
    Tick,
    Tokens,
    TrainGroup,
    WeightsLoaded,
)
from pipeline.observability import timing
from pipeline.observability.critical_path import NOT_KNOWN
from pipeline.observability.spans import StepRecord
from pipeline.observability.timeline import Timeline
from pipeline.wire.messages import ChunkHead, LegTimes, Span, TrainMember
from tests.pipeline.coordinator.world import World, plugins_of, settings_of


def place(trajectory: int, engine: str = "e0", since: float = 0.0) -> Generate:
    return Generate(
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


def judge(trajectory: int) -> RequestReward:
    return RequestReward(
        kind="train", prompt=0, group=7, trajectory=trajectory, tokens=b"", finish="stop"
    )


def train(group: int, *trajectories: int) -> TrainGroup:
    members = tuple(
        TrainMember(trajectory=t, response=b"", behaviour=b"", reward=1.0, advantage=1.0)
        for t in trajectories
    )
    return TrainGroup(rank=0, step=0, group=group, prompt=0, members=members)


def over(*members: tuple[int, str, bool], group: int = 7) -> Report:
    table = [[t, state, 5, -0.1, 1.0, trained, [1]] for t, state, trained in members]
    fields = {"group": group, "kind": "train", "fate": "trained", "members": table}
    return Report(what="group", fields=fields)


def step_over(seconds: float, step: int = 0) -> Report:
    return Report(what="step", fields={"step": step, "seconds": seconds})


def a_step(timeline: Timeline) -> StepRecord:
    """From 10 s on: weights 1 s, a trajectory 3 s, its reward 1 s, a pass 2 s, the close 1 s."""
    timeline.record_event(10.0, Tick(), [LoadWeights(engine="e0", version=1)], 10.1)
    timeline.weights_loaded("e0", [Span("receiving weights", 10.2, 10.5, (1,)),
                           Span("loading weights", 10.5, 10.9, (1,))])  # fmt: skip
    timeline.record_event(
        11.0, WeightsLoaded(engine="e0", version=1, gap=0.0), [place(1), place(2)], 11.1
    )
    times = [LegTimes(1, 0, 11.1, 11.2, 12.0)]
    timeline.record_event(12.1, tokens(ended(1), sent=12.0, times=times), [judge(1)])
    times = [LegTimes(2, 0, 11.2, 11.5, 13.9)]
    timeline.record_event(14.0, tokens(ended(2), sent=13.9, times=times), [judge(2)])
    timeline.record_event(14.2, RewardReady(trajectory=1, value=1.0, times=(12.1, 14.1)), [])
    reward = RewardReady(trajectory=2, value=1.0, times=(14.1, 15.0))
    timeline.record_event(15.0, reward, [train(7, 1, 2)])
    timeline.record_work(0, [Span("forward and backward", 15.1, 17.0, (7,), (15.05,))])
    finish = CloseStep(step=0, groups=(7,), normaliser=1.0)
    timeline.record_event(17.0, GroupTrained(rank=0, group=7, tokens=5.0), [finish])
    timeline.record_work(0, [Span("optimizer step", 17.1, 17.8, (0,), (17.05,)),
                        Span("publishing weights", 17.8, 17.9)])  # fmt: skip
    applied = StepDone(rank=0, step=0, version=2)
    commands = [over((1, "finished", True), (2, "finished", True)), step_over(8.0)]
    [record] = timeline.record_event(18.0, applied, commands)
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


def kinds(record: StepRecord) -> list[tuple[str, str, float]]:
    return [(piece.what, piece.detail, round(piece.seconds, 6)) for piece in record.path]


def test_a_trajectory_that_waited_for_a_slot_hangs_on_the_one_that_freed_it():
    timeline = Timeline()
    timeline.record_event(0.0, Tick(), [place(1)])
    timeline.record_event(3.0, tokens(ended(1)), [place(2)])
    # a step without a close: as long as its two trajectories, one after the other
    [record] = timeline.record_event(5.0, tokens(ended(2)), [step_over(5.0)])
    assert kinds(record) == [
        ("decoding", "trajectory 1, 5 tokens", 3.0),
        ("decoding", "trajectory 2, 5 tokens", 2.0),
    ]


def test_passes_one_after_another_are_on_the_path_together():
    """The second group came while the rank was busy: it waited for that, not for its tokens."""
    timeline = Timeline()
    timeline.record_event(0.0, Tick(), [train(1), train(2)])
    timeline.record_work(0, [Span("forward and backward", 0.0, 2.0, (1,), (0.0,))])
    timeline.record_event(2.0, GroupTrained(rank=0, group=1, tokens=1.0), [])
    timeline.record_work(0, [Span("forward and backward", 2.5, 5.0, (2,), (0.2,))])
    finish = CloseStep(step=0, groups=(1, 2), normaliser=2.0)
    timeline.record_event(5.0, GroupTrained(rank=0, group=2, tokens=1.0), [finish])
    [record] = timeline.record_event(6.0, StepDone(rank=0, step=0, version=1), [step_over(6.0)])
    assert kinds(record) == [
        ("forward and backward", "group 1", 2.0),
        ("between passes", "", 0.5),
        ("forward and backward", "group 2", 2.5),
        ("optimizer, publish", "", 1.0),
    ]


def test_a_group_behind_work_that_nobody_asked_for_says_so():
    timeline = Timeline()
    timeline.record_event(0.0, Tick(), [train(1)])
    timeline.record_work(0, [Span("logprobs ahead", 0.0, 1.0),
                        Span("forward and backward", 1.0, 2.0, (1,), (0.5,))])  # fmt: skip
    finish = CloseStep(step=0, groups=(1,), normaliser=1.0)
    timeline.record_event(2.0, GroupTrained(rank=0, group=1, tokens=1.0), [finish])
    [record] = timeline.record_event(2.0, StepDone(rank=0, step=0, version=1), [step_over(2.0)])
    assert ("busy with logprobs ahead", "", 0.5) in kinds(record)


def test_the_fate_of_a_leg_that_ends_after_its_group_is_known():
    timeline = Timeline()
    timeline.record_event(0.0, Tick(), [place(1), place(2)])
    timeline.record_event(
        1.0, tokens(ended(1)), [over((1, "finished", True), (2, "aborted", False))]
    )
    timeline.record_event(2.0, tokens(ended(2, finish="abort")), [])
    legs = {leg.trajectory: leg for leg in timeline.rest().legs}
    assert (legs[1].fate, legs[1].length, legs[1].group) == ("trained", 5, 7)
    assert (legs[2].fate, legs[2].heard) == ("aborted", 2.0)


def test_percentiles_are_of_what_was_measured():
    found = timing.timing_metrics(a_step(Timeline()), reward_workers=2)
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
    found = timing.timing_metrics(a_step(Timeline()))["lives"]
    assert sum(life["trajectories"] for life in found) == 2
    assert found[-1]["seconds"]["forward and backward"] == pytest.approx(1.9)


def test_nothing_is_kept_of_steps_that_are_over():
    """Slots handed from leg to leg for ever make no chain of links that grows."""
    timeline, now = Timeline(), 0.0
    timeline.record_event(now, Tick(), [place(0)])
    for step in range(200):
        for trajectory in (2 * step, 2 * step + 1):
            now += 1.0
            timeline.record_event(now, tokens(ended(trajectory)), [place(trajectory + 1)])
        timeline.record_event(now, Tick(), [step_over(2.0, step)])
    [leg] = timeline._legs.values()
    length, link = 0, leg.asked
    while link is not None:
        length, link = length + 1, link.before
    assert length <= 6


@pytest.mark.parametrize("stamps", [(), (LegTimes(1, 0, 109.1, 109.2, 110.0),)])
def test_a_leg_that_also_ends_its_group_keeps_its_past(stamps: tuple[LegTimes, ...]):
    timeline = Timeline()
    timeline.record_event(100.0, Tick(), [place(0)])
    timeline.record_event(109.0, tokens(ended(0)), [place(1)])
    commands = [over((1, "finished", False)), place(2)]  # deferred as surplus; its slot is free
    timeline.record_event(110.0, tokens(ended(1), times=stamps), commands)
    [record] = timeline.record_event(112.0, tokens(ended(2)), [step_over(12.0)])
    assert kinds(record)[0] == ("decoding", "trajectory 0, 5 tokens", 9.0)
    assert NOT_KNOWN not in [what for what, _, _ in kinds(record)]


def test_a_lost_cause_is_a_segment_that_says_so():
    timeline = Timeline()
    timeline.record_event(0.0, Tick(), [])
    timeline.record_work(
        0, [Span("forward and backward", 3.0, 4.0, (1,), (2.0,))]
    )  # never asked for
    timeline.record_event(4.0, Tick(), [train(1)])
    timeline._ranks._handovers[1].link = None
    finish = CloseStep(step=0, groups=(1,), normaliser=1.0)
    timeline.record_event(4.0, GroupTrained(rank=0, group=1, tokens=1.0), [finish])
    [record] = timeline.record_event(4.0, StepDone(rank=0, step=0, version=1), [step_over(4.0)])
    assert kinds(record)[0] == (NOT_KNOWN, "", 2.0)
    assert timing.timing_metrics(record)["explained_share"] == pytest.approx(0.5)


def test_each_group_of_a_pass_has_its_own_arrival():
    timeline = Timeline()
    timeline.record_event(0.0, Tick(), [train(1, 11)])
    timeline.record_event(5.0, Tick(), [train(2, 12)])
    timeline.record_work(0, [Span("forward and backward", 6.0, 7.0, (1, 2), (0.01, 5.01))])
    for group in (1, 2):
        timeline.record_event(7.0, GroupTrained(rank=0, group=group, tokens=1.0), [])
    [record] = timeline.record_event(8.0, Tick(), [step_over(8.0)])
    percentiles = timing.timing_metrics(record)["percentiles"]
    assert percentiles["group_to_learner_s"]["max"] == pytest.approx(0.01)
    assert percentiles["learner_wait_s"]["max"] == pytest.approx(5.99)


def test_word_of_an_overtaken_version_leaves_the_newer_load_alone():
    timeline = Timeline()
    timeline.record_event(0.0, Tick(), [LoadWeights(engine="e0", version=1)])
    timeline.record_event(1.0, Tick(), [LoadWeights(engine="e0", version=2)])
    timeline.weights_loaded("e0", [Span("loading weights", 0.0, 1.5, (1,))])
    timeline.record_event(1.6, WeightsLoaded(engine="e0", version=1, gap=0.0), [])
    timeline.weights_loaded("e0", [Span("loading weights", 1.6, 2.5, (2,))])
    served = Report(what="served", fields={"engine": "e0"})
    timeline.record_event(3.0, WeightsLoaded(engine="e0", version=2, gap=0.0), [served])
    [load] = timeline.rest().loads
    assert (load.version, load.served, [span.of for span in load.stages]) == (2, True, [(2,)])


def test_a_load_that_proved_too_little_is_not_one_that_is_served():
    timeline = Timeline()
    again = [LoadWeights(engine="e0", version=1)]
    timeline.record_event(0.0, Tick(), again)
    timeline.record_event(1.0, WeightsLoaded(engine="e0", version=1, gap=9.0), again)
    record = timeline.rest()
    assert [load.served for load in record.loads] == [False]
    assert timing.samples(record, [])["weights_load_s"] == []


def test_steps_that_end_together_are_both_told_of():
    timeline = Timeline()
    timeline.record_event(0.0, Tick(), [place(1)])
    commands = [over((1, "finished", True)), step_over(5.0, 0), step_over(0.0, 1)]
    first, second = timeline.record_event(5.0, tokens(ended(1)), commands)
    assert (first.step, len(first.legs)) == (0, 1)
    assert (second.step, second.path) == (1, [])


def test_rewards_of_an_evaluation_before_the_step_do_not_fill_its_workers():
    timeline = Timeline()
    judged = msgspec.structs.replace(judge(1), kind="eval")
    timeline.record_event(0.0, Tick(), [judged])
    timeline.record_event(9.0, RewardReady(trajectory=1, value=1.0, times=(0.0, 9.0)), [judge(2)])
    timeline.record_event(10.0, RewardReady(trajectory=2, value=1.0, times=(9.5, 10.0)), [])
    [record] = timeline.record_event(14.0, Tick(), [step_over(5.0)])
    found = timing.timing_metrics(record, reward_workers=1)
    assert found["bubble_reward"] == pytest.approx(0.9)
    assert found["percentiles"]["reward_s"]["count"] == 1


def test_a_stamp_from_the_future_makes_no_path_longer_than_its_step():
    timeline = Timeline()
    timeline.record_event(0.0, Tick(), [place(1)])
    stamps = [LegTimes(1, 0, 1.0, 500.0, 900.0)]
    [record] = timeline.record_event(5.0, tokens(ended(1), times=stamps), [step_over(5.0)])
    assert sum(seconds for _, _, seconds in kinds(record)) == pytest.approx(5.0)


def test_an_event_with_thirty_decisions_is_one_sample():
    timeline = Timeline()
    fields = {"action": "Finalize", "why": ""}
    thirty = [Report(what="decision", fields={**fields, "group": g}) for g in range(30)]
    timeline.record_event(0.0, Tick(), thirty, 0.3)
    [record] = timeline.record_event(2.0, Tick(), [step_over(2.0)])
    assert timing.timing_metrics(record)["percentiles"]["decision_s"]["count"] == 1


def test_an_ended_member_that_the_selector_throws_out_is_told_of_and_forgotten():
    timeline = Timeline()
    timeline.record_event(0.0, Tick(), [place(1)])
    fields = {"action": "Abort", "group": 7, "why": "", "ids": [1]}
    timeline.record_event(1.0, tokens(ended(1)), [Report(what="decision", fields=fields)])
    assert [leg.fate for leg in timeline._record.legs] == ["aborted"]
    assert timeline._ended == {}


def test_both_legs_of_a_trajectory_end_after_its_group():
    timeline = Timeline()
    timeline.record_event(0.0, Tick(), [place(1), msgspec.structs.replace(place(1, "e1"), leg=1)])
    timeline.record_event(1.0, Tick(), [over((1, "aborted", False))])
    timeline.record_event(2.0, tokens(ended(1, finish="abort")), [])
    second = tokens(ChunkHead(1, 1, 0, 0, 1, "abort"), engine="e1")
    timeline.record_event(3.0, second, [])
    assert [leg.fate for leg in timeline.rest().legs] == ["aborted", "aborted"]
    assert timeline._over == timeline._ended == {}


class TimedWorld(World):
    """A world of random orders and faults whose timeline is looked at."""

    timeline: Timeline
    records: list[StepRecord]
    placed = 0

    def tell(self, event: AnyEvent) -> None:
        if self.placed == 0:
            self.timeline, self.records = Timeline(), []
        self.now += 0.01
        self.log.append(event)
        commands = self.coordinator.handle(event, self.now)
        self.commands += commands
        for command in commands:
            self.carry_out(command)
        self.placed += 1 + sum(isinstance(command, Generate) for command in commands)
        self.records += self.timeline.record_event(self.now, event, commands, self.now + 0.001)
        self.check()


@pytest.mark.parametrize("selector", ["all", "first_m", "dual_end", "concise_confident"])
@pytest.mark.parametrize("stale", [0, 1])
@pytest.mark.parametrize("faults", [0.0, 0.1])
def test_in_random_worlds_every_wait_has_its_cause_and_nothing_is_kept(
    selector: str, stale: int, faults: float
):
    for seed in range(4):
        settings = settings_of(seed=seed, max_staleness=stale, steps=5, ranks=1 + seed % 2)
        world = TimedWorld(seed, settings, plugins_of(selector, seed=seed), faults=faults)
        world.start()
        world.run()
        assert world.records
        for record in world.records:
            found = timing.timing_metrics(record, reward_workers=2)
            assert found["explained_share"] == pytest.approx(1.0), record.path
            assert sum(s.seconds for s in record.path) == pytest.approx(found["seconds"])
        left = world.timeline
        kept = (left._legs, left._ended, left._over, left._running, left._scorings)
        assert not any(kept), kept
