"""Bounded asynchrony: generation runs ahead by k steps, and no token is older than that."""

from __future__ import annotations

import pytest

from pipeline.coordinator.events import CloseStep, Generate, GroupTrained, Report, StepDone
from tests.pipeline.coordinator.bench import Bench, only
from tests.pipeline.coordinator.world import World, plugins_of, settings_of


def test_the_next_steps_prompts_go_out_before_the_update() -> None:
    bench = Bench(need=1, steps=3, prompts=9, max_staleness=1)
    placed = only(bench.begin(slots=20), Generate)
    assert {p.prompt for p in placed} == {0, 1}, "two steps of one group"
    bench.train_one(0)
    commands = bench.handle(GroupTrained(rank=0, group=0, tokens=5.0))
    assert only(commands, CloseStep), "the step does not wait for the groups of the next one"
    assert bench.group(1).state == "open"


def test_a_group_that_would_become_too_old_is_waited_for() -> None:
    bench = Bench(need=1, steps=4, prompts=9, max_staleness=1)
    bench.begin(slots=40)
    bench.tokens(3, 2)  # group 1 holds a token of version 0
    bench.train_one(0)
    bench.handle(GroupTrained(rank=0, group=0, tokens=5.0))
    bench.close_version()
    bench.handle(StepDone(rank=0, step=0, version=1))
    bench.serve()
    late = max(bench.core.groups)
    assert late > 1
    commands = bench.train_one(late)  # a younger group is there first
    commands += bench.handle(GroupTrained(rank=0, group=late, tokens=5.0))
    assert not only(commands, CloseStep), "group 1 could not be trained on after version 2"


def test_or_dropped_where_that_is_asked_for() -> None:
    bench = Bench(need=1, steps=4, prompts=9, max_staleness=1, stale="drop")
    bench.begin(slots=40)
    bench.tokens(3, 2)
    bench.train_one(0)
    bench.handle(GroupTrained(rank=0, group=0, tokens=5.0))
    bench.close_version()
    bench.handle(StepDone(rank=0, step=0, version=1))
    bench.serve()
    late = max(bench.core.groups)
    commands = bench.train_one(late)
    commands += bench.handle(GroupTrained(rank=0, group=late, tokens=5.0))
    assert only(commands, CloseStep)
    bench.handle(StepDone(rank=0, step=1, version=2))
    assert bench.fate(1) == ("dropped", "stale")


@pytest.mark.parametrize("stale", ["wait", "drop"])
@pytest.mark.parametrize("selector", ["all", "first_m", "dual_end"])
@pytest.mark.parametrize("k", [1, 2])
def test_runs_ahead_end_and_balance_whatever_happens(selector: str, k: int, stale: str) -> None:
    ages: list[float] = []
    for seed in range(10):
        settings = settings_of(
            seed=seed, steps=5, max_staleness=k, stale=stale, ranks=1 + seed % 2, stream=True
        )
        plugins = plugins_of(selector, seed=seed, top_up="fewest")
        world = World(seed, settings, plugins, faults=0.05, learner_faults=0.02)
        world.start()
        world.run()  # asserts that no token trained on is older than k
        assert world.over is not None and world.over.error == ""
        core = world.coordinator.core
        assert core.step == 5 and not core.groups and not core.trajectories
        steps = [report.fields for report in world.reports if report.what == "step"]
        ages += [fields["staleness_max"] for fields in steps if "staleness_max" in fields]
    assert 0 < max(ages) <= k


@pytest.mark.parametrize("k", [0, 1, 2])
def test_every_token_is_of_one_step_or_of_an_evaluation(k: int) -> None:
    """Also those that are sampled for a later step while an evaluation runs."""
    for seed in range(5):
        settings = settings_of(seed=seed, steps=6, max_staleness=k, held_out=9, eval_every=1)
        world = World(seed, settings, plugins_of(seed=seed), faults=0.0, learner_faults=0.0)
        world.start()
        world.run()
        ledger = world.coordinator.core.ledger
        steps = [report.fields for report in world.reports if report.what == "step"]
        assert len(steps) == 6
        at_the_last = steps[-1]["ledger"]  # a token of a stopped response may come later
        sampled = sum(fields["tokens_sampled"] for fields in steps)
        assert sampled == at_the_last["sampled"] - at_the_last["eval"]
        assert sum(fields["tokens_trained"] for fields in steps) == ledger.accounts["trained"]


def test_a_step_takes_the_time_of_an_evaluation_in_which_it_was_sampled() -> None:
    bench = Bench(
        need=1, steps=3, prompts=9, max_staleness=1, held_out=1, eval_every=1, eval_samples=1
    )
    bench.begin(slots=20)  # the evaluation before the first step
    [first] = bench.core.trajectories
    bench.tokens(first, 2, finish="stop")
    bench.reward(first, 1.0)
    [one, two] = sorted(bench.core.groups)
    bench.train_one(one)
    bench.handle(GroupTrained(rank=0, group=one, tokens=5.0))
    bench.close_version()
    bench.handle(StepDone(rank=0, step=0, version=1))
    bench.serve()
    began = bench.core.stats.since
    bench.now += 5.0
    ahead = bench.group(two).members[0].id
    bench.tokens(ahead, 3)
    sampled = bench.now
    bench.now += 7.0
    [last] = [t.id for t in bench.core.trajectories.values() if bench.group(t.group).kind == "eval"]
    bench.tokens(last, 2, finish="stop")
    bench.reward(last, 1.0)
    bench.train_one(two)
    bench.handle(GroupTrained(rank=0, group=two, tokens=5.0))
    bench.close_version()
    opened = bench.now
    [step] = [
        command.fields
        for command in bench.handle(StepDone(rank=0, step=1, version=2))
        if isinstance(command, Report) and command.what == "step"
    ]
    assert step["seconds"] == pytest.approx(sampled - began + bench.now - opened, abs=0.2)
    assert 5.0 < step["seconds"] < 6.0, "and not the 7 seconds of the evaluation alone"
    assert step["tokens_sampled"] == 3 + 3 + 4, "three of them while the evaluation ran"
