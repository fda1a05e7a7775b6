"""Responses that are kept: each once, with what became of it and why, in the ledger's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from pipeline.coordinator.events import AnyCommand, KeepRollouts, RewardMissing
from pipeline.coordinator.rollouts import Rollout
from pipeline.plugins.actions import Abort, Drop, Finalize, Stop
from pipeline.wire.messages import ints
from tests.pipeline.coordinator.bench import Bench, only


def kept(commands: Iterable[AnyCommand]) -> dict[int, Rollout]:
    found = [r for command in only(commands, KeepRollouts) for r in command.rollouts]
    assert max(Counter(r.id for r in found).values(), default=1) == 1, "each response once"
    return {r.id: r for r in found}


@pytest.fixture
def bench() -> Bench:
    bench = Bench(candidates=4, rollouts_every=1, tries=30.0)
    bench.begin()
    return bench


def test_every_member_of_a_trained_group_is_kept_with_its_fate(bench: Bench) -> None:
    bench.tokens(2, 5)
    bench.learn(bench.train_one(0))
    found = kept(bench.everything)
    assert {i: (r.fate, r.finish) for i, r in found.items()} == {
        0: ("trained", "stop"), 1: ("trained", "stop"),
        2: ("aborted", "aborted"), 3: ("aborted", "aborted"),
    }  # fmt: skip
    assert [found[i].reward for i in range(4)] == [1.0, 0.0, None, None]
    assert (found[0].advantage, found[1].advantage) == (0.5, -0.5)
    assert (found[2].advantage, found[2].why) == (None, "it still ran when its group closed")
    assert found[3].why == "it had no token yet when its group closed"
    assert [ints(found[i].tokens).size for i in range(4)] == [3, 4, 5, 0]
    [command] = only(bench.everything, KeepRollouts)
    assert (command.step, command.group, command.fate) == (0, 0, "trained")


def test_a_reason_is_the_member_s_own_before_that_of_its_group(bench: Bench) -> None:
    bench.tokens(0, 3, "stop")
    bench.tokens(1, 4)
    bench.tokens(2, 2, "stop")
    bench.ask(0, Stop((1,), why="too long"))
    bench.handle(RewardMissing(trajectory=2, why="the reward raised ValueError"))
    bench.ask(0, Drop(why="nothing to learn"))
    found = kept(bench.everything)
    assert {i: (r.fate, r.finish, r.why) for i, r in found.items() if i < 3} == {
        0: ("dropped", "stop", "nothing to learn"),
        1: ("dropped", "stopped early", "too long"),
        2: ("failed", "stop", "the reward raised ValueError"),
    }


def test_a_member_that_a_selector_aborts_is_kept_though_its_group_goes_on(bench: Bench) -> None:
    bench.tokens(0, 3, "stop")
    bench.ask(0, Abort((0,), why="a copy"))
    [command] = only(bench.everything, KeepRollouts)
    assert command.fate == "open"
    assert [(r.id, r.fate, r.finish, r.why) for r in command.rollouts] == [
        (0, "aborted", "stop", "a copy")
    ]
    bench.ask(0, Drop())
    assert set(kept(bench.everything)) == {0, 1, 2, 3}


def test_what_was_not_chosen_says_so(bench: Bench) -> None:
    for member in range(3):
        bench.tokens(member, 3, "stop")
    bench.selector.say(0, Finalize((0, 1)))
    bench.tokens(3, 3, "stop")
    bench.reward(0, 1.0)
    bench.learn(bench.reward(1, 0.0))
    assert [(r.fate, r.why) for r in kept(bench.everything).values()][2:] == [
        ("redundant", "not chosen"), ("redundant", "not chosen"),
    ]  # fmt: skip


@pytest.mark.parametrize("every, steps", [(0, []), (1, [0, 1, 2, 3]), (2, [1, 3])])
def test_only_the_steps_that_are_asked_for_are_kept(every: int, steps: list[int]) -> None:
    bench = Bench(candidates=2, rollouts_every=every, steps=4, prompts=9)
    bench.begin()
    for group in range(4):
        bench.learn(bench.train_one(group))
        bench.serve()
    assert [command.step for command in only(bench.everything, KeepRollouts)] == steps
