"""Rewards over whole groups: asked for once, of the chosen; audits judge the others beside them."""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import (
    AnyCommand,
    CancelReward,
    RequestReward,
    RewardMissing,
    TrainGroup,
)
from pipeline.coordinator.groups import GroupState
from pipeline.plugins.actions import Drop, Finalize
from tests.pipeline.coordinator.bench import Bench, Scripted, only


def begun(selector: Any = None, **changes: Any) -> Bench:
    """Group 0 with members 0 and 1 that have finished, and 2, which runs."""
    bench = Bench(selector, tries=30.0, group_reward=True, **changes)
    bench.begin()
    for trajectory in (0, 1):
        bench.tokens(trajectory, 3, "stop")
    return bench


def asked(commands: list[AnyCommand]) -> list[tuple[int, tuple[int, ...]]]:
    return [(c.trajectory, c.together) for c in only(commands, RequestReward)]


def test_nothing_is_asked_until_the_group_is_chosen_and_then_all_in_one_call() -> None:
    bench = begun()
    assert asked(bench.everything) == []
    commands = bench.ask(0, Finalize((1, 0)))
    assert asked(commands) == [(0, (0, 1)), (1, (0, 1))]
    assert bench.group(0).state is GroupState.CHOSEN
    bench.reward(1, 1.0)
    commands = bench.reward(0, 0.0)
    [train] = only(commands, TrainGroup)
    assert [(m.trajectory, m.reward) for m in train.members] == [(1, 1.0), (0, 0.0)]
    assert asked(commands) == []


def test_a_selector_that_wants_rewards_is_not_waited_for() -> None:
    bench = begun(Scripted(reward=True))
    bench.tokens(2, 2, "stop")
    assert bench.fate(0)[0] == "dropped"


def test_a_group_without_rewards_is_dropped() -> None:
    bench = begun()
    bench.ask(0, Finalize((0, 1)))
    bench.handle(RewardMissing(trajectory=0, why="it raised"))
    commands = bench.handle(RewardMissing(trajectory=1, why="it raised"))
    assert bench.fate(0) == ("dropped", "fewer than two rewards")
    assert not only(commands, CancelReward)


def test_a_group_that_is_dropped_before_was_never_judged() -> None:
    bench = begun()
    bench.ask(0, Drop("easy"))
    assert asked(bench.everything) == []


def test_in_an_audited_group_the_others_are_judged_with_all_once_they_have_ended() -> None:
    bench = begun(audit_every=1)
    assert asked(bench.ask(0, Finalize((0, 1)))) == [(0, (0, 1)), (1, (0, 1))]
    assert asked(bench.tokens(2, 2, "stop")) == [], "the chosen keep a reward of their own first"
    bench.reward(0, 1.0)
    assert asked(bench.reward(1, 0.0)) == [(0, (0, 1, 2)), (1, (0, 1, 2)), (2, (0, 1, 2))]
    bench.reward(0, 0.0)  # of the second call: it has one already
    bench.reward(1, 0.0)
    [train] = only(bench.reward(2, 1.0), TrainGroup)
    assert [(m.trajectory, m.reward) for m in train.members] == [(0, 1.0), (1, 0.0)]


def test_an_audited_group_waits_for_the_last_one_to_end_or_to_be_given_up() -> None:
    bench = begun(audit_every=1)
    bench.ask(0, Finalize((0, 1)))
    bench.reward(0, 1.0)
    bench.reward(1, 0.0)
    assert bench.group(0).state is GroupState.CHOSEN
    commands: list[AnyCommand] = []
    for _ in range(3):
        commands = bench.tokens(2, 0, "error")
    assert only(commands, TrainGroup)


def test_a_resume_asks_again_about_all_of_the_chosen() -> None:
    bench = begun()
    bench.ask(0, Finalize((0, 1)))
    bench.reward(0, 1.0)
    saved = msgspec.msgpack.decode(
        msgspec.msgpack.encode(snapshot.take(bench.coordinator)), type=snapshot.Snapshot
    )
    again = Coordinator(bench.settings, bench.core.plugins, [5] * 50)
    assert asked(snapshot.restore(again, saved, 0.0)) == [(0, (0, 1)), (1, (0, 1))]
    assert again.group_manager.awaiting_reward.keys() == {1}


def test_evaluations_are_judged_one_by_one() -> None:
    bench = Bench(group_reward=True, held_out=1, eval_every=1, eval_samples=2)
    bench.begin()
    [judge] = only(bench.tokens(0, 2, "stop"), RequestReward)
    assert (judge.kind, judge.together) == ("eval", ())
