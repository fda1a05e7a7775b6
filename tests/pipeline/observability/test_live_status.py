"""What a run does now: true figures, and no dearer with many groups in flight."""

from __future__ import annotations

import msgspec

from pipeline.coordinator.events import GroupTrained, Published, Tick
from pipeline.observability import live_status as live_module
from pipeline.observability.live_status import LONGEST_WAITS, MOST_MEMBERS, RunStatus, run_status
from tests.pipeline.coordinator.bench import Bench
from tests.pipeline.coordinator.world import World, settings_of


def groups(now: RunStatus) -> dict[str, int]:
    return {stage: number for stage, number in now.groups.items() if number}


def test_before_anybody_has_joined_it_names_who_is_missing() -> None:
    bench = Bench(ranks=2)
    bench.handle(Tick())
    now = run_status(bench.coordinator, 0.0)
    assert (now.phase, now.step, now.engines) == ("starting", 0, ())
    assert [wait.what for wait in now.waits] == [
        "learner ranks [0, 1] to join",
        "an engine to join",
    ]
    assert now.at_rank == {"0": 0, "1": 0}


def test_engines_slots_queues_and_tokens_are_those_of_the_moment() -> None:
    bench = Bench(candidates=3)
    bench.begin(slots=2)
    bench.tokens(0, 5)
    now = run_status(bench.coordinator, 12.345)
    [engine] = now.engines
    assert (engine.name, engine.running, engine.slots, engine.version) == ("e0", 2, 2, 0)
    assert (now.running, now.queued, now.sampled) == (2, 1, 5)
    assert now.ledger["open"] == 5
    assert now.training_seconds == 12.35
    assert groups(now) == {"open": 1}
    bench.handle(Published(version=1))
    [engine] = run_status(bench.coordinator, 0.0).engines
    assert (engine.version, engine.loading) == (0, 1)


def test_a_taken_group_is_at_its_rank_until_it_has_been_trained_on() -> None:
    bench = Bench(need=2, tries=2.0)
    bench.begin()
    bench.train_one(0)
    now = run_status(bench.coordinator, 0.0)
    assert (groups(now), now.at_rank) == ({"open": 1, "sent": 1}, {"0": 1})
    bench.handle(GroupTrained(rank=0, group=0, tokens=7.0))
    assert run_status(bench.coordinator, 0.0).at_rank == {"0": 0}


def test_the_newest_step_and_evaluation_are_told_until_the_next_ones() -> None:
    world = World(5, settings_of(seed=5), faults=0.0, reward_faults=0.0)
    assert run_status(world.coordinator, 0.0).newest_step == {}
    world.start()
    world.run()
    now = run_status(world.coordinator, 0.0)
    reported = {r.what: r.fields for r in world.reports}  # the last of each kind
    for what, newest in (("step", now.newest_step), ("eval", now.newest_eval)):
        assert newest["step"] == reported[what]["step"]
        assert set(newest) > {"seconds", "tokens_mean", "tokens_p95"}
        assert newest == {name: reported[what][name] for name in newest}
    assert now.phase == "over"


def test_of_each_group_the_longest_wait_is_told_and_of_all_the_longest_few() -> None:
    bench = Bench(need=LONGEST_WAITS + 2, tries=1.0)
    bench.begin(slots=4)
    bench.now += 60
    bench.handle(Tick())
    waits = run_status(bench.coordinator, 0.0).waits
    assert len(waits) == LONGEST_WAITS
    assert [w.seconds for w in waits] == sorted((w.seconds for w in waits), reverse=True)
    assert all(wait.seconds > 60 for wait in waits)
    named = [wait.what.split("group ")[1].split(",")[0] for wait in waits]
    assert named == [str(number) for number in range(LONGEST_WAITS)]


def test_waits_are_looked_for_in_the_oldest_groups_only() -> None:
    """Cost, told by what is looked at: no clock is needed to see that it is bounded."""
    bench = Bench(need=MOST_MEMBERS, tries=1.0, prompts=MOST_MEMBERS, candidates=4)
    bench.coordinator.steps.planner.open(MOST_MEMBERS, 2, first=True, speculate=True)
    open_ones = bench.core.train_groups(live_module.GroupState.OPEN)
    assert len(open_ones) == MOST_MEMBERS
    looked_at = list(live_module._oldest(open_ones))
    assert [group.id for group in looked_at] == list(range(MOST_MEMBERS // 4))


def test_a_file_of_another_version_is_read_as_far_as_it_is_known() -> None:
    found = msgspec.json.decode(b'{"phase": "training", "later": [1]}', type=RunStatus)
    assert (found.phase, found.engines) == ("training", ())
