"""Who gets a slot, when one is free, and what a resumed leg is given."""

from __future__ import annotations

import pytest

from pipeline.coordinator.events import (
    AbortLegs,
    EngineJoined,
    EngineLost,
    Generate,
    LoadWeights,
    Published,
    Restart,
    Tick,
    WeightsFailed,
    WeightsLoaded,
)
from pipeline.coordinator.groups import TrajectoryState
from pipeline.plugins.actions import Abort, Park, Sample, Stop
from tests.pipeline.coordinator.bench import Bench, only, placed


def test_no_request_goes_to_an_engine_that_has_not_proved_its_weights() -> None:
    bench = Bench()
    commands = bench.begin(engines=0)
    bench.join("e0")
    assert only(commands, Generate) == []
    [serve] = only(bench.everything, LoadWeights)
    assert (serve.engine, serve.version) == ("e0", 0)
    kinds = [type(c) for c in bench.everything if isinstance(c, LoadWeights | Generate)]
    assert kinds == [LoadWeights, Generate, Generate, Generate]


@pytest.mark.fault(
    "an engine serves other weights than it was told to", part="engines", by="direct"
)
def test_an_engine_whose_probe_differs_too_much_is_asked_again_and_restarted_after_three() -> None:
    """Promise: it is asked to load again, and after three proofs that differ it is started again,
    with a warning that tells by how much.
    Bound: three loads.
    """
    bench = Bench()
    bench.begin(engines=0)
    bench.join("e0")
    bench.handle(Published(version=1))  # its load was proved; now another
    for attempt in (1, 2):
        commands = bench.serve(gap=0.5)
        assert len(only(commands, LoadWeights)) == 1, f"attempt {attempt}"
        assert only(commands, Restart) == []
    assert len(only(bench.serve(gap=0.5), Restart)) == 1
    assert "probe differs by 0.5 nats" in bench.warnings()[-2]
    assert bench.coordinator.scheduler.engines == {}


def test_refused_loads_of_an_older_version_do_not_count_against_the_next() -> None:
    bench = Bench()
    bench.begin(engines=2)
    bench.handle(Published(version=1))
    for _ in range(2):
        bench.handle(WeightsFailed(engine="e0", version=1, why="checksum"))
    bench.handle(Published(version=2))
    commands = bench.handle(WeightsFailed(engine="e0", version=2, why="checksum"))
    assert only(commands, Restart) == []


def test_an_answer_about_an_older_version_is_ignored() -> None:
    bench = Bench()
    bench.begin()
    bench.handle(Published(version=1))
    bench.handle(WeightsLoaded(engine="e0", version=0, gap=0.0))
    assert bench.coordinator.scheduler.serving() == []


def test_legs_are_spread_over_engines_by_load() -> None:
    bench = Bench(candidates=6)
    bench.begin(engines=2, slots=0)
    bench.join("e0", slots=2)
    bench.handle(EngineJoined(engine="e1", epoch=1, slots=8))
    bench.handle(EngineJoined(engine="e2", epoch=0, slots=4))
    for name in ("e1", "e2"):
        bench.handle(WeightsLoaded(engine=name, version=0, gap=0.0))
    loads = {e.name: len(e.legs) for e in bench.coordinator.scheduler.engines.values()}
    assert loads == {"e0": 2, "e1": 4, "e2": 0}, "first come, first served, up to its share"
    commands = bench.ask(0, Sample(4))
    assert [c.engine for c in only(commands, Generate)] == ["e2", "e2", "e1", "e2"]


def test_the_first_engine_with_new_weights_leaves_the_others_their_part() -> None:
    bench = Bench(candidates=3, need=2, steps=2, log_wait_s=5.0)
    bench.begin(engines=2)
    for group in (0, 1):
        bench.learn(bench.train_one(group))
    assert bench.core.version == 1
    first = bench.serve("e1")
    assert {c.engine for c in only(first, Generate)} == {"e1"}
    assert len(only(first, Generate)) == 4, "half of six new ones and two that are ending on e0"
    assert len(only(bench.serve("e0"), Generate)) == 2


@pytest.mark.fault("an engine takes too long to load new weights", part="engines", by="direct")
def test_an_engine_that_loads_too_long_is_not_waited_for() -> None:
    """Promise: others take its part of the requests.
    Bound: `timeouts.log_wait_s` (here 5 s).
    """
    bench = Bench(candidates=3, need=2, steps=2, log_wait_s=5.0)
    bench.begin(engines=2)
    for group in (0, 1):
        bench.learn(bench.train_one(group))
    assert len(only(bench.serve("e1"), Generate)) == 4
    bench.now += 5.0
    assert len(only(bench.handle(Tick()), Generate)) == 2


@pytest.mark.fault("an engine answers an abort late", part="engines", by="direct")
def test_a_slot_is_free_only_when_the_finish_has_arrived_in_band() -> None:
    """Promise: its slot is not given away before the answer has come.
    Bound: until the answer, or the engine is started again (`timeouts.abort_s`).
    """
    bench = Bench(candidates=3)
    bench.begin(slots=2)
    bench.tokens(0, 3)
    commands = bench.ask(0, Abort((0,)))
    assert only(commands, AbortLegs) == [AbortLegs(engine="e0", legs=((0, 0),))]
    assert placed(commands) == [], "its slot is not free yet"
    commands = bench.tokens(0, 1, "abort", leg=0, offset=3)
    assert placed(commands) == [(2, 0)]


def test_free_slots_go_to_lost_legs_then_parked_then_queued() -> None:
    bench = Bench(candidates=6)
    bench.begin(slots=3)  # 0 1 2 run; 3 4 5 are queued
    bench.tokens(0, 2)
    bench.tokens(1, 2)
    bench.ask(0, Park((1,)))
    bench.handle(EngineLost(engine="e0", why="killed"))  # 0 and 2 are lost
    commands = bench.join("e0", slots=6)
    order = [trajectory for trajectory, _ in placed(commands)]
    assert order == [0, 2, 1, 3, 4, 5]


def test_the_oldest_group_is_placed_first() -> None:
    bench = Bench(candidates=2, need=3, prompts=10)
    bench.begin(slots=1)
    commands = bench.tokens(0, 3, "stop")
    assert placed(commands) == [(1, 0)]
    commands = bench.tokens(1, 3, "stop")
    [place] = only(commands, Generate)
    assert bench.member(place.trajectory).group == 1


def test_every_leg_and_every_member_has_a_seed_of_its_own() -> None:
    bench = Bench(candidates=3)
    commands = bench.begin()
    for _ in range(3):
        commands += bench.ask(0, Park((0,)))
        commands += bench.tokens(0, 0, "abort", leg=bench.member(0).leg - 1)
    seeds = [c.seed for c in only(commands, Generate)]
    assert len(set(seeds)) == len(seeds) == 6
    assert all(0 <= seed < 2**62 for seed in seeds)


def test_a_resumed_leg_gets_the_tokens_held_and_what_is_left_of_the_limit() -> None:
    bench = Bench()
    bench.begin()
    bench.tokens(0, 5)
    bench.ask(0, Park((0,)))
    [place] = [c for c in only(bench.everything, Generate) if c.leg == 1]
    assert len(place.prefix) == 20
    assert place.max_tokens == 24 - 5
    assert bench.core.ledger.prefilled_again == 5


def test_parked_until_published_waits_for_the_next_version() -> None:
    bench = Bench()
    bench.begin()
    bench.tokens(0, 5)
    commands = bench.ask(0, Park((0,), until="published"))
    assert placed(commands) == []
    assert bench.accounts == {"parked": 5}
    bench.handle(Published(version=1))
    commands = bench.serve()
    assert (0, 1) in placed(commands)
    assert bench.accounts == {"open": 5}


def test_a_queued_member_can_be_parked_and_comes_back() -> None:
    bench = Bench()
    bench.begin(slots=2)
    bench.ask(0, Park((2,)))
    assert bench.member(2).state is TrajectoryState.PARKED
    commands = bench.tokens(0, 3, "stop")
    assert placed(commands) == [(2, 1)]


def test_an_engine_without_a_slot_gets_nothing_and_hurts_nobody() -> None:
    bench = Bench()
    assert placed(bench.begin(slots=0)) == []


def test_an_engine_that_joins_again_before_it_was_lost_begins_anew() -> None:
    bench = Bench()
    bench.begin()
    bench.tokens(0, 4)
    bench.join("e0")
    assert bench.member(0).held == 4
    assert bench.member(0).leg == 1
    assert bench.coordinator.scheduler.engines["e0"].epoch == 1


@pytest.mark.parametrize("action", [Stop((0,)), Abort((0,))], ids=["stop", "abort"])
def test_a_parked_member_that_is_ended_is_not_resumed(action: Stop | Abort) -> None:
    bench = Bench()
    bench.begin()
    bench.tokens(0, 4)
    bench.ask(0, Park((0,), until="published"), action)
    bench.handle(Published(version=1))
    commands = bench.serve()
    assert (0, 1) not in placed(commands)
    assert "parked" not in bench.accounts
