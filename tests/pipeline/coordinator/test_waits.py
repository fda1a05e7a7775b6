"""A run that stands still says what it waits for, and who could end it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pipeline.coordinator.events import (
    EngineLost,
    GroupTrained,
    Halt,
    LearnerJoined,
    Published,
    Report,
    Tick,
)
from pipeline.plugins.actions import BatchAction, Enough, Finalize, Park
from pipeline.plugins.views import BatchView
from tests.pipeline.coordinator.bench import Bench, only


def line(bench: Bench) -> str:
    """What it says after a long time in which nothing happens; the first tick starts the watch."""
    bench.handle(Tick())
    bench.now += 100
    [said] = [r for r in only(bench.handle(Tick()), Report) if r.what == "wait"]
    return said.fields["text"]


def test_it_waits_for_learner_ranks_to_join() -> None:
    bench = Bench(ranks=2)
    bench.handle(LearnerJoined(rank=1))
    assert line(bench) == "waiting 100 s for learner ranks [0] to join"


def test_it_waits_for_the_learner_to_publish() -> None:
    bench = Bench()
    bench.handle(LearnerJoined(rank=0))
    assert line(bench) == "waiting 100 s for learner rank 0 to publish"


def test_it_waits_for_an_engine() -> None:
    bench = Bench()
    bench.begin()
    bench.handle(EngineLost(engine="e0", why="killed"))
    assert "an engine to join" in line(bench)


def test_it_waits_for_an_engine_to_prove_its_weights() -> None:
    bench = Bench()
    bench.begin()
    bench.handle(Published(version=1))
    for trajectory in (0, 1, 2):
        bench.tokens(trajectory, 0, "abort")
    assert "engine e0 to load and prove version 1" in line(bench)


def test_it_waits_for_a_running_trajectory_by_engine_and_length() -> None:
    bench = Bench(candidates=1)
    bench.begin()
    bench.tokens(0, 3)
    assert line(bench).endswith(
        "for step 1 waits for train group 0, which waits for trajectory 0, running on e0, 3 tokens"
    )


def test_it_waits_for_a_reward() -> None:
    bench = Bench()
    bench.begin()
    bench.tokens(0, 3, "stop")
    bench.tokens(1, 3, "stop")
    bench.ask(0, Finalize((0, 1)))
    bench.reward(1, 1.0)
    assert line(bench).endswith("train group 0, which waits for the reward of trajectory 0")


def test_it_waits_for_a_rank_to_train() -> None:
    bench = Bench()
    bench.begin()
    bench.train_one(0)
    assert line(bench).endswith("train group 0, which waits for learner rank 0 to train on it")


def test_it_waits_for_the_optimizer_step() -> None:
    bench = Bench()
    bench.begin()
    bench.train_one(0)
    bench.handle(GroupTrained(rank=0, group=0, tokens=7.0))
    assert "step 1: the optimizer step" in line(bench)


def test_it_waits_for_a_checkpoint() -> None:
    bench = Bench()
    bench.begin()
    bench.handle(Halt())
    assert "the checkpoint of step 0" in line(bench)


def test_it_waits_for_a_slot() -> None:
    bench = Bench(candidates=2)
    bench.begin(slots=0)
    assert line(bench).endswith("trajectory 0, queued for a slot")


def test_it_waits_for_a_publish_that_a_parked_member_waits_for() -> None:
    bench = Bench(candidates=2)
    bench.begin()
    bench.tokens(0, 3)
    bench.ask(0, Park((0,), until="published"))
    found = [wait.what for wait in bench.coordinator.waits.find()]
    assert any(what.endswith("trajectory 0, parked until the next publish") for what in found)


class Never:
    """Batch: takes nothing, closes nothing."""

    def decide(self, view: BatchView) -> Iterable[BatchAction]:
        return ()


def test_it_names_a_batch_rule_that_never_takes_a_ready_group() -> None:
    bench = Bench(plugins={"batch": Never()})
    bench.begin()
    bench.train_one(0)
    assert line(bench).endswith("train group 0, which waits for batch rule Never to take it")


def test_it_is_never_silent_even_when_nobody_is_to_blame() -> None:
    bench = Bench(plugins={"batch": Never()}, candidates=2)
    bench.begin()
    bench.tokens(0, 3, "stop")
    bench.ask(0, Enough())
    bench.tokens(1, 3, "stop")
    bench.reward(0, 1.0)
    bench.reward(1, 0.0)
    assert line(bench) == "waiting 100 s for an unknown cause, training: train group 0 enough"


@pytest.mark.parametrize("seconds,said", [(19, 0), (21, 1)])
def test_it_speaks_once_per_limit(seconds: float, said: int) -> None:
    bench = Bench()
    bench.handle(Tick())
    found: list[Report] = []
    bench.now += seconds
    for _ in range(5):
        found += [r for r in only(bench.handle(Tick()), Report) if r.what == "wait"]
    assert len(found) == said


def test_tokens_that_arrive_are_progress() -> None:
    bench = Bench()
    bench.begin()
    bench.handle(Tick())
    for _ in range(10):
        bench.now += 15
        bench.tokens(0, 1)
        assert not [r for r in only(bench.handle(Tick()), Report) if r.what == "wait"]
