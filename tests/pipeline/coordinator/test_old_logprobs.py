"""Old logprobs: kept with each token under the version that sampled it, before the version ends."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.coordinator import snapshot
from pipeline.coordinator.events import (
    CloseStep,
    CloseVersion,
    GroupTrained,
    Halt,
    LearnerLost,
    OldLogprobs,
    Report,
    StepDone,
    StreamTokens,
    Tick,
    TrainGroup,
    VersionClosed,
)
from pipeline.coordinator.groups import Trajectory
from pipeline.coordinator.old_logprobs import for_training, keep, token_versions
from pipeline.coordinator.timeouts import Timeouts
from pipeline.plugins.actions import Finalize
from pipeline.plugins.interfaces import Every
from tests.pipeline.coordinator.bench import Bench, Scripted, only, piece_of

TRAINED = GroupTrained(rank=0, group=0, tokens=5.0)


def running_ahead(**changes: Any) -> Bench:
    """Group 0 is for this step, group 1 for the next one; member 3 of group 1 holds two tokens."""
    usual: dict[str, Any] = {"need": 1, "steps": 3, "prompts": 9, "max_staleness": 1}
    bench = Bench(**(usual | changes))
    bench.begin(slots=40)
    bench.tokens(3, 2)
    bench.train_one(0)
    return bench


def old_of(bench: Bench, trajectory: int) -> list[float]:
    return np.frombuffer(bytes(bench.member(trajectory).old), "<f4").tolist()


def sent(commands: Any) -> dict[int, list[float]]:
    """Old logprobs that went out with a group, by trajectory."""
    [train] = only(commands, TrainGroup)
    return {m.trajectory: np.frombuffer(m.old, "<f4").tolist() for m in train.members}


# --- the close -----------------------------------------------------------------------------


def test_the_step_closes_once_the_old_logprobs_of_its_version_are_here() -> None:
    bench = running_ahead()
    commands = bench.handle(TRAINED)
    assert not only(commands, CloseStep)
    [order] = only(commands, CloseVersion)
    assert (order.rank, order.version, order.prompts) == (0, 0, {1: 1})
    [chunk] = order.chunks
    assert (chunk.group, chunk.trajectory, chunk.offset, len(chunk.tokens)) == (1, 3, 0, 8)
    piece = piece_of(3, [-1.25, -2.5])
    assert not only(bench.handle(OldLogprobs(rank=0, version=0, pieces=(piece,))), CloseStep)
    assert only(bench.handle(VersionClosed(rank=0, version=0)), CloseStep)
    assert old_of(bench, 3) == [-1.25, -2.5]


def test_a_stale_token_is_trained_with_the_old_logprob_of_its_own_version() -> None:
    """Member 3: two tokens of version 0 with old logprobs, one that came too late, two of
    version 1. The late one has its behaviour logprob, -0.5; those of version 1 have none."""
    bench = running_ahead()
    bench.handle(TRAINED)
    bench.handle(OldLogprobs(rank=0, version=0, pieces=(piece_of(3, [-1.25, -2.5]),)))
    bench.handle(VersionClosed(rank=0, version=0))
    bench.tokens(3, 1)  # the engine still serves version 0, the learner does not
    bench.handle(StepDone(rank=0, step=0, version=1))
    bench.serve()
    bench.tokens(3, 2, "stop")
    bench.tokens(4, 2, "stop")
    old = sent(bench.ask(1, *finalize(3, 4)) + bench.reward(3, 1.0) + bench.reward(4, 0.0))
    assert old[3][:3] == [-1.25, -2.5, -0.5]
    assert np.isnan(old[3][3:]).all() and len(old[3]) == 5
    assert old[4] == [], "all of the version that the step begins with"
    bench.handle(GroupTrained(rank=0, group=1, tokens=7.0))
    bench.close_version()
    bench.handle(StepDone(rank=0, step=1, version=2))
    figures = step_record(bench, 1)
    assert (figures["old_known"], figures["old_missing"]) == (2, 1)
    assert (figures["staleness_max"], figures["staleness_mean"]) == (1, 0.5)


def finalize(*ids: int) -> tuple[Any, ...]:
    return (Finalize(ids),)


def step_record(bench: Bench, step: int) -> dict[str, Any]:
    [found] = [
        c.fields
        for c in only(bench.everything, Report)
        if c.what == "step" and c.fields["step"] == step
    ]
    return found


def test_where_no_token_can_become_stale_nothing_is_asked_for() -> None:
    for changes in ({"max_staleness": 0}, {"steps": 1}, {"limits": Timeouts(close_s=0)}):
        bench = running_ahead(**changes)
        commands = bench.handle(TRAINED)
        assert only(commands, CloseStep) and not only(commands, CloseVersion), changes


def test_a_rank_that_does_not_answer_is_waited_for_close_s_and_no_longer() -> None:
    bench = running_ahead(limits=Timeouts(close_s=5.0))
    bench.handle(TRAINED)
    bench.now += 4.0
    assert not only(bench.handle(Tick()), CloseStep)
    [wait, *_] = [w for w in bench.coordinator.waits.find() if w.kind == "close"]
    assert wait.what == "step 1: old logprobs of version 0 from learner ranks [0]"
    bench.now += 4.0
    assert only(bench.handle(Tick()), CloseStep)
    assert bench.coordinator.watchdog.acted == {"close": 1}
    late = piece_of(3, [-1.25, -2.5])  # sent before the weights change: as good as in time
    bench.handle(OldLogprobs(rank=0, version=0, pieces=(late,)))
    assert not only(bench.handle(VersionClosed(rank=0, version=0)), CloseStep)
    assert old_of(bench, 3) == [-1.25, -2.5]
    bench.handle(StepDone(rank=0, step=0, version=1))
    assert step_record(bench, 0)["close_version_s"] == pytest.approx(8.03, abs=0.02)


def test_every_rank_is_asked_and_waited_for() -> None:
    """Where passes communicate, a rank without a response has to take part."""
    bench = running_ahead(ranks=2)
    asked = only(bench.handle(TRAINED), CloseVersion)
    assert [(order.rank, len(order.chunks)) for order in asked] == [(0, 0), (1, 1)]
    assert not only(bench.handle(VersionClosed(rank=1, version=0)), CloseStep)
    assert not only(bench.handle(VersionClosed(rank=1, version=0)), CloseStep), "twice the same"
    assert only(bench.handle(VersionClosed(rank=0, version=0)), CloseStep)


@pytest.mark.parametrize(
    "version, piece",
    [
        (1, piece_of(3, [-1.0, -1.0])),
        (0, piece_of(3, [-1.0, -1.0, -1.0])),
        (0, piece_of(3, [-1.0, -1.0], first=1)),
        (0, piece_of(3, [-1.0, float("nan")])),
        (0, piece_of(3, [-1.0, float("-inf")])),
        (0, piece_of(3, [-1.0, 0.5])),
        (0, piece_of(3, [-1.0, -1.0], entropies=[1.0, float("inf")])),
        (0, piece_of(10**6, [-1.0])),
    ],
    ids=["version", "length", "offset", "nan", "infinite", "positive", "entropy", "unknown"],
)
def test_a_piece_that_does_not_fit_is_counted_and_changes_nothing(version: int, piece: Any) -> None:
    bench = running_ahead()
    bench.handle(TRAINED)
    before = msgspec.msgpack.encode(bench.group(1))
    bench.handle(OldLogprobs(rank=0, version=version, pieces=(piece,)))
    assert msgspec.msgpack.encode(bench.group(1)) == before
    bench.close_version()
    bench.handle(StepDone(rank=0, step=0, version=1))
    assert step_record(bench, 0)["old_refused"] == 1


def test_a_piece_of_a_member_that_has_left_is_no_lie() -> None:
    bench = running_ahead()
    bench.handle(OldLogprobs(rank=0, version=0, pieces=(piece_of(2, [-1.0]),)))  # aborted
    bench.handle(TRAINED)
    bench.close_version()
    bench.handle(StepDone(rank=0, step=0, version=1))
    assert "old_refused" not in step_record(bench, 0)


def test_a_group_that_the_next_step_drops_is_not_computed() -> None:
    bench = Bench(need=1, steps=4, prompts=9, max_staleness=1, stale="drop")
    bench.begin(slots=40)
    bench.tokens(3, 2)
    bench.train_one(0)
    bench.handle(TRAINED)
    bench.close_version()
    bench.handle(StepDone(rank=0, step=0, version=1))
    bench.serve()
    bench.tokens(3, 2)  # and two of version 1: the first two will be too old at version 2
    late = max(bench.core.groups)
    bench.train_one(late)
    commands = bench.handle(GroupTrained(rank=0, group=late, tokens=7.0))
    assert only(commands, CloseStep) and not only(commands, CloseVersion)


def test_a_rank_lost_at_the_close_ends_the_run() -> None:
    bench = running_ahead()
    bench.handle(TRAINED)
    bench.handle(LearnerLost(rank=0, why="killed"))
    assert bench.over is not None and "rank 0 lost" in bench.over.error
    assert not only(bench.everything, CloseStep)


def test_a_halt_at_the_close_cuts_at_once_and_no_update_follows() -> None:
    bench = running_ahead()
    bench.handle(TRAINED)
    bench.handle(Halt())
    assert snapshot.take(bench.coordinator).step == 0
    assert not only(bench.close_version(), CloseStep)


# --- the record ----------------------------------------------------------------------------


def test_a_resume_keeps_old_logprobs_versions_and_entropies() -> None:
    bench = running_ahead()
    streamed = piece_of(3, [-1.25, -2.5], entropies=[0.5, 1.0])
    bench.handle(OldLogprobs(rank=0, version=0, pieces=(streamed,)))
    saved = msgspec.msgpack.decode(
        msgspec.msgpack.encode(snapshot.take(bench.coordinator)), type=snapshot.Snapshot
    )
    again = Bench(need=1, steps=3, prompts=9, max_staleness=1)
    snapshot.restore(again.coordinator, saved, 0.0)
    member = again.member(3)
    assert old_of(again, 3) == [-1.25, -2.5]
    assert member.version_starts == [(0, 0)]
    assert member.entropy == 0.75


def test_logprobs_are_kept_of_tokens_of_that_version_alone_and_the_first_holds() -> None:
    member = Trajectory(id=1, group=1, member=0, max_tokens=9, version_starts=[(0, 0), (2, 1)])
    member.tokens += bytes(4 * 5)
    member.logprobs += np.full(5, -0.5, "<f4").tobytes()
    member.appended.append((3, 1))
    assert token_versions(member).tolist() == [0, 0, 1, -1, 1]
    assert token_versions(member, 1, 4).tolist() == [0, 1, -1]
    keep(member, piece_of(1, [-1.0, -2.0, -3.0, -4.0, -5.0]), 0)
    keep(member, piece_of(1, [-6.0, -7.0, -8.0, -9.0], first=1), 1)
    keep(member, piece_of(1, [-9.0]), 0)
    assert np.frombuffer(for_training(member, 2), "<f4").tolist() == pytest.approx(
        [-1.0, -2.0, -7.0, np.nan, -9.0], nan_ok=True
    )
    assert np.isnan(np.frombuffer(for_training(member, 1), "<f4")[2:]).all()


def test_entropies_count_once_and_without_what_the_environment_appended() -> None:
    member = Trajectory(id=1, group=1, member=0, max_tokens=9, version_starts=[(0, 0)])
    member.tokens += bytes(4 * 6)
    member.appended.append((2, 1))
    assert member.entropy is None
    keep(member, piece_of(1, [-1.0] * 3, entropies=[1.0, 2.0, 7.0]), 0)
    assert member.entropy == 1.5
    keep(member, piece_of(1, [-1.0], first=5, entropies=[9.0]), 0)  # a gap: not passed
    assert member.entropy == 1.5
    keep(member, piece_of(1, [-1.0] * 5, entropies=[8.0, 8.0, 8.0, 3.0, 6.0]), 1)  # from anew
    assert member.entropy == 3.0


# --- streaming -----------------------------------------------------------------------------


def test_what_a_rank_has_forgotten_at_the_publish_is_streamed_anew_and_nothing_in_between() -> None:
    bench = running_ahead(stream=True, overlap="token")
    bench.handle(TRAINED)
    bench.close_version()
    assert not only(bench.tokens(3, 3), StreamTokens), "its weights are about to change"
    bench.handle(StepDone(rank=0, step=0, version=1))
    bench.serve()
    [chunk] = only(bench.tokens(3, 1), StreamTokens)
    assert (chunk.offset, len(chunk.tokens)) == (0, 4 * 6)
    [chunk] = only(bench.tokens(3, 2), StreamTokens)
    assert (chunk.offset, len(chunk.tokens)) == (6, 4 * 2)


def test_a_streamed_logprob_is_not_asked_for_again() -> None:
    bench = running_ahead(stream=True, overlap="token")
    bench.handle(OldLogprobs(rank=0, version=0, pieces=(piece_of(3, [-1.0, -1.0]),)))
    assert only(bench.handle(TRAINED), CloseStep)


def test_a_selector_sees_a_members_entropy() -> None:
    bench = Bench(selector=Scripted(every=2, entropy=True), stream=True, overlap="token")
    bench.begin()
    bench.tokens(0, 2)
    bench.handle(OldLogprobs(rank=0, version=0, pieces=(piece_of(0, [-1.0] * 2, 0, [0.25, 1.0]),)))
    bench.tokens(0, 2)
    seen = [view for view, event in bench.selector.seen if isinstance(event, Every)]
    assert [view.members[0].entropy for view in seen] == [None, 0.625]
    assert seen[-1].members[1].entropy is None
