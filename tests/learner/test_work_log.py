"""What a rank says of its own work."""

from __future__ import annotations

import time

from learner.work_log import WorkLog
from pipeline.wire.messages import CloseStep, ForgetGroup, StreamedTokens, TrainGroup


def group(number: int) -> TrainGroup:
    return TrainGroup(step=0, group=number, prompt=b"", members=())


def test_a_pass_names_its_groups_and_when_each_had_come() -> None:
    diary = WorkLog()
    before = time.monotonic()
    diary.arrived(group(1))
    between = time.monotonic()
    diary.arrived(group(2))
    diary.did("forward and backward", between, [group(1), group(2)])
    diary.did("optimizer step", between, [CloseStep(step=4, groups=(1, 2), normaliser=1.0)])
    first, close = diary.take().spans
    assert (first.of, close.of) == ((1, 2), (4,))
    assert before <= first.asked_s[0] <= between <= first.asked_s[1] <= first.end_s
    assert first.start_s == between
    assert diary.take().spans == ()


def test_work_of_one_kind_without_a_gap_is_one_span() -> None:
    diary = WorkLog()
    start = time.monotonic()
    for _ in range(3):
        diary.did("logprobs ahead", time.monotonic())
    [span] = diary.take().spans
    assert start <= span.start_s <= span.end_s
    diary.did("logprobs ahead", span.end_s - 10.0)
    diary.did("forward and backward", time.monotonic())
    assert len(diary.take().spans) == 2


def test_hints_are_told_with_both_clocks_and_what_is_forgotten_leaves_nothing() -> None:
    diary = WorkLog()
    diary.arrived(StreamedTokens(prompts={}, sent_at_s=123.0))
    [(sent_s, came_s)] = diary.take().hints
    assert sent_s == 123.0 and came_s <= time.monotonic()
    diary.arrived(group(1))
    diary.arrived(ForgetGroup(group=1))
    assert diary._came == {}
