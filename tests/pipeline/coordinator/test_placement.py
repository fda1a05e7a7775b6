"""Who gets a slot where lengths are predicted: the longest first, where memory has room."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.coordinator.events import EngineLost, Tick
from pipeline.coordinator.length_forecast import AT_LEAST
from pipeline.plugins.actions import Park
from tests.pipeline.coordinator.bench import Bench, placed
from tests.pipeline.coordinator.world import World, plugins_of, settings_of


def longest_first(**changes: Any) -> Bench:
    """Three groups of two, of prompts 0 to 2; their prompts had 4, 20 and 12 tokens before."""
    bench = Bench(candidates=2, need=3, prompts=10, placement_order="longest", **changes)
    for prompt, tokens in enumerate((4, 20, 12)):
        bench.core.forecast.ended(prompt, tokens)
    return bench


def test_the_longest_go_first_and_it_is_counted():
    bench = longest_first()
    order = placed(bench.begin(slots=6))
    assert [trajectory for trajectory, _ in order] == [2, 3, 4, 5, 0, 1]
    assert bench.core.stats.placed_sooner == 4


def test_the_oldest_go_first_otherwise():
    bench = Bench(candidates=2, need=3, prompts=10)
    bench.core.forecast.ended(1, 20)
    assert [trajectory for trajectory, _ in placed(bench.begin(slots=6))] == [0, 1, 2, 3, 4, 5]
    assert bench.core.stats.placed_sooner == 0


def test_interrupted_ones_go_before_new_ones_and_the_longest_of_these_first():
    bench = longest_first()
    bench.begin(slots=3)  # 2, 3 and 4 run
    bench.tokens(3, 15)
    bench.ask(2, Park((4,)))
    bench.handle(EngineLost(engine="e0", why="killed"))
    order = [trajectory for trajectory, _ in placed(bench.join("e0", slots=6))]
    assert order == [2, 3, 4, 5, 0, 1], "lost with 20 and 5 to come, parked, new"


@pytest.mark.parametrize("kv_tokens,running", [(58, 1), (59, 2), (29 * 3 + 1, 3)])
def test_a_response_waits_for_a_slot_in_which_the_predicted_peak_fits(kv_tokens: int, running: int):
    """Each has 5 tokens of prompt and at most 24 to come: two peak at 2 * 24 + 10 = 58."""
    bench = Bench(candidates=3, kv_tokens=kv_tokens)
    assert len(placed(bench.begin(slots=8))) == running
    assert bench.core.stats.waited_for_memory == (running < 3)


def test_the_history_of_lengths_lets_more_run():
    bench = Bench(candidates=3, kv_tokens=58)
    for _ in range(AT_LEAST):
        bench.core.forecast.ended(7, 2)
    assert len(placed(bench.begin(slots=8))) == 3, "3 * 2 + 15 = 21 at their peak"


def test_what_has_no_room_is_placed_once_a_response_has_ended():
    bench = Bench(candidates=3, kv_tokens=1)
    assert placed(bench.begin(slots=8)) == [(0, 0)], "an idle engine takes any"
    assert placed(bench.tokens(0, 3)) == []
    assert placed(bench.handle(Tick())) == []
    assert placed(bench.tokens(0, 1, "stop")) == [(1, 0)]
    assert bench.core.stats.waited_for_memory == 2


def test_another_engine_takes_what_the_emptiest_has_no_room_for():
    bench = Bench(candidates=3, kv_tokens=59)
    bench.begin(engines=2, slots=1)
    bench.tokens(0, 3, "stop")  # e0 has one slot, and memory for two
    bench.join("e2", slots=8)
    loads = {e.name: len(e.legs) for e in bench.coordinator.scheduler.engines.values()}
    assert sum(loads.values()) == 2


@pytest.mark.parametrize("selector,kv_tokens", [("dual_end", 0), ("first_m", 70), ("all", 70)])
def test_runs_end_and_balance(selector: str, kv_tokens: int):
    sooner = waited = 0
    for seed in range(4):
        settings = settings_of(seed=seed, placement_order="longest", kv_tokens=kv_tokens)
        plugins = plugins_of(selector, seed=seed, redundancy=1.0, top_up="slowest")
        world = World(seed, settings, plugins, faults=0.1)
        world.start()
        world.run()
        assert world.over is not None and world.over.error == ""
        acted = [r.fields["placement"] for r in world.reports if "placement" in r.fields]
        sooner += sum(figures["sooner"] for figures in acted)
        waited += sum(figures.get("for_memory", 0) for figures in acted)
    assert sooner > 0
    assert (waited > 0) == (kv_tokens > 0)
