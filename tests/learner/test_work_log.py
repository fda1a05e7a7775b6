"""What a rank says of its own work."""

from __future__ import annotations

import time

from learner.work_log import WorkLog, hidden_seconds
from pipeline.wire.messages import CloseStep, ForgetGroup, StreamedTokens, TrainGroup


def group(number: int) -> TrainGroup:
    return TrainGroup(step=0, group=number, prompt=b"", members=())


def test_a_pass_names_its_groups_and_when_each_had_come() -> None:
    work_log = WorkLog()
    before = time.monotonic()
    work_log.record_arrival(group(1))
    between = time.monotonic()
    work_log.record_arrival(group(2))
    work_log.record_work("forward and backward", between, [group(1), group(2)])
    work_log.record_work(
        "optimizer step", between, [CloseStep(step=4, groups=(1, 2), normaliser=1.0)]
    )
    first, close = work_log.take_spans().spans
    assert (first.of, close.of) == ((1, 2), (4,))
    assert before <= first.asked_s[0] <= between <= first.asked_s[1] <= first.end_s
    assert first.start_s == between
    assert work_log.take_spans().spans == ()


def test_work_of_one_kind_without_a_gap_is_one_span() -> None:
    work_log = WorkLog()
    start = time.monotonic()
    for _ in range(3):
        work_log.record_work("logprobs ahead", time.monotonic())
    [span] = work_log.take_spans().spans
    assert start <= span.start_s <= span.end_s
    work_log.record_work("logprobs ahead", span.end_s - 10.0)
    work_log.record_work("forward and backward", time.monotonic())
    assert len(work_log.take_spans().spans) == 2


def test_hints_are_told_with_both_clocks_and_what_is_forgotten_leaves_nothing() -> None:
    work_log = WorkLog()
    work_log.record_arrival(StreamedTokens(prompts={}, sent_at_s=123.0))
    [(sent_s, came_s)] = work_log.take_spans().hints
    assert sent_s == 123.0 and came_s <= time.monotonic()
    work_log.record_arrival(group(1))
    work_log.record_arrival(ForgetGroup(group=1))
    assert work_log._came == {}


def test_hidden_are_the_seconds_before_the_last_group_came() -> None:
    spans = [(10.0, 12.0), (13.0, 17.0), (18.0, 19.0)]  # before, across, after it
    assert hidden_seconds(spans, last_group_s=14.0) == 2.0 + 1.0
    assert hidden_seconds(spans, last_group_s=9.0) == 0.0
    assert hidden_seconds(spans, last_group_s=20.0) == 7.0
    assert hidden_seconds([], last_group_s=20.0) == 0.0
