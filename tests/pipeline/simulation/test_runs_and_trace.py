"""Whole simulated runs: the same seed is the same run, times are those of the models, and the
trace of one is a valid Chrome trace."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import msgspec
import pytest

from launch.simulate.methods_at_scale import METHODS, SYNC, bound_seconds
from launch.simulate.scenario import (
    Scenario,
    begin_simulation,
    run_method,
    run_metrics,
    teacher,
    worth,
)
from pipeline.coordinator.events import EngineLost
from pipeline.hardware.costs import EngineCost, LearnerCost, Machines
from pipeline.observability.chrome_trace import ENGINE, LEARNER, REWARDS, STAGE, Tracer
from pipeline.simulation.loop import Simulation, StandsStill
from pipeline.simulation.policy import Policy
from pipeline.simulation.workload import Lengths, Parametric
from tests.pipeline.simulation.early_estimates import ESTIMATES, small
from tests.traces import arrows, checked_spans

TINY = Scenario(
    engine=EngineCost(points=((1, 0.006), (8, 0.007), (32, 0.010)), load_s=0.05),
    learner=LearnerCost(train_s=1e-4, forward_s=3e-5, step_s=0.02, publish_s=0.01),
    engines=2,
    slots=16,
    lengths=Lengths(median=60, between=0.4, within=0.7),
    limit=400,
    prompts=6,
    size=8,
    steps=3,
)

USUAL = ("first 8 of 12", "dual-end, step barrier, 12", "top-up and quorum", "k = 1, all")
"""Estimates that `make test` looks at; the others are left to `make test-long`."""


def played(scenario: Scenario, overrides: tuple[str, ...], *observers: Any) -> Simulation:
    workload = Parametric(scenario.lengths, Policy(scenario.rate), seed=scenario.seed)
    simulation = begin_simulation(
        scenario.method_config(overrides),
        scenario.machines(),
        workload,
        learn=teacher(workload),
        observers=observers,
        streamed=scenario.streamed,
    )
    return simulation.run()


@pytest.mark.parametrize("method", ["darts_barrier", "top_up_deferred_quorum", "k1"])
def test_the_same_seed_is_the_same_run_bit_for_bit(method: str):
    learning = msgspec.structs.replace(TINY, rate=1.0)
    one, other = (played(learning, METHODS[method]) for _ in range(2))
    assert one.reports == other.reports and one.now == other.now and one.events == other.events
    another = played(msgspec.structs.replace(learning, seed=1), METHODS[method])
    assert another.now != one.now


def test_a_run_may_be_played_in_pieces():
    whole, pieces = played(TINY, SYNC), None
    workload = Parametric(TINY.lengths, Policy(0.0), seed=0)
    pieces = begin_simulation(TINY.method_config(SYNC), TINY.machines(), workload)
    for second in range(1, 100):
        pieces.run(seconds=float(second))
        assert pieces.now <= second
    assert pieces.over is not None and pieces.reports == whole.reports


def test_without_overlap_a_step_is_generation_then_learning_then_the_publish():
    simulation = played(TINY, SYNC)
    cost = TINY.learner_cost()
    for step in simulation.of("step"):
        learning = step["tokens_trained"] * (cost.train_s + cost.forward_s)
        load_s = TINY.engine_cost().load_s if step["step"] else 0.0  # it opens with a load
        serial = cost.step_s + cost.publish_s + load_s
        messages = 20 * TINY.machines().delay_s
        expected = step["generation_s"] + learning + serial
        assert expected - 1e-9 <= step["seconds"] <= expected + messages


def test_forwards_of_hinted_tokens_are_hidden_behind_generation():
    off = played(TINY, (*SYNC, "learner.overlap=off"))
    streamed = played(msgspec.structs.replace(TINY, streamed=True), SYNC)
    assert off.coordinator.steps.report.hidden_share == 0.0
    assert (streamed.coordinator.steps.report.hidden_share or 0.0) > 0.9
    assert streamed.now < off.now


def test_learning_moves_lengths_and_accuracy_and_a_rate_of_zero_does_not():
    still, _ = run_method(TINY, SYNC)
    assert (still.accuracy_before, still.tokens_before) == (
        still.accuracy_after,
        still.tokens_after,
    )
    moved, _ = run_method(msgspec.structs.replace(TINY, rate=2.0, steps=8), SYNC)
    assert moved.accuracy_after > moved.accuracy_before


def test_no_step_is_faster_than_its_bound():
    full = msgspec.structs.replace(TINY, engine=None, engines=1, slots=256, prompts=200, steps=1)
    for scenario, methods in ((TINY, ("sync_streamed", "top_up_quorum")), (full, ("first_m",))):
        for method in methods:
            found, _ = run_method(scenario, METHODS[method])
            bound = bound_seconds(scenario, found)
            assert 0.1 * found.step_s < bound < found.step_s


def test_figures_of_a_run_that_failed_are_refused():
    class Broken:
        def response(self, request: object) -> Any:
            raise KeyError("no such prompt")

    simulation = begin_simulation(TINY.method_config(SYNC), TINY.machines(), Broken())
    with pytest.raises(KeyError):
        simulation.run()
    workload = Parametric(TINY.lengths, Policy(0.0), seed=0)
    with pytest.raises(RuntimeError, match="ended: None"):
        run_metrics(simulation, TINY, worth(workload, 9, 0), worth(workload, 9, 0))


def test_engines_speak_in_chunks_and_the_coordinator_hears_the_same_tokens():
    coarse = played(TINY, SYNC)
    machines: Machines = msgspec.structs.replace(TINY.machines(), chunk_tokens=8)
    workload = Parametric(TINY.lengths, Policy(0.0), seed=0)
    fine = begin_simulation(TINY.method_config(SYNC), machines, workload).run()
    assert fine.events > 1.5 * coarse.events
    assert fine.coordinator.core.ledger.accounts == coarse.coordinator.core.ledger.accounts


def test_a_rule_that_waits_for_ever_is_named_and_ends_the_run():
    class Never:
        def decide(self, view: object) -> list[Any]:
            return []

    workload = Parametric(TINY.lengths, Policy(0.0), seed=0)
    simulation = begin_simulation(TINY.method_config(SYNC), TINY.machines(), workload)
    plugins = msgspec.structs.replace(simulation.coordinator.core.plugins, batch=Never())
    simulation.coordinator.core.plugins = plugins
    with pytest.raises(StandsStill, match="batch rule Never to take it"):
        simulation.run()


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_share_the_learners_gpus(ranks: int):
    scenario = msgspec.structs.replace(TINY, learner=None, learner_gpus=4, ranks=ranks)
    one = scenario.learner_cost()
    whole = msgspec.structs.replace(scenario, ranks=1).learner_cost()
    assert one.train_s == pytest.approx(ranks * whole.train_s)


# --- statements about selection that hold, on one small engine ---------------------------------


@pytest.mark.parametrize(
    "method,overrides,estimate",
    [
        pytest.param(*each, id=each[0], marks=() if each[0] in USUAL else pytest.mark.long)
        for each in ESTIMATES
    ],
)
def test_estimates_for_one_small_engine_hold(
    method: str, overrides: tuple[str, ...], estimate: float
):
    scenario = msgspec.structs.replace(small(), steps=60)
    base, _ = run_method(scenario, SYNC)
    own, _ = run_method(scenario, overrides)
    assert base.step_s / own.step_s == pytest.approx(estimate, rel=0.15), method


def test_the_small_engine_is_the_one_that_the_estimates_were_made_with():
    assert small().engine == EngineCost(
        points=((1, 6.4e-3), (8, 6.8e-3), (32, 8.2e-3), (64, 10.7e-3), (128, 21e-3))
    )


def test_what_waits_for_the_longest_wins_nothing_and_what_does_not_wins_much():
    scenario = msgspec.structs.replace(small(), steps=25)
    base, _ = run_method(scenario, SYNC)
    names = ("darts_published", "darts_barrier", "first_m", "top_up", "top_up_quorum", "k1")
    found = {name: run_method(scenario, METHODS[name])[0] for name in names}
    x = {name: base.step_s / own.step_s for name, own in found.items()}
    assert x["darts_published"] < 1.1, "it waits for the longest of more"
    assert x["first_m"] > 1.5
    assert 1.3 < x["darts_barrier"] <= x["first_m"] * 1.02, "nearly its time"
    assert found["darts_barrier"].depth > 1.2 * found["first_m"].depth, "with more depth"
    assert x["top_up"] > x["first_m"], "extra candidates where slots are idle"
    assert x["top_up_quorum"] > 0.98 * x["top_up"]
    assert found["first_m"].trained_tokens < 0.7 * base.trained_tokens, "it trains on less"
    assert x["k1"] > 1.4


def test_wider_tails_pay_more():
    wins = []
    for within in (0.3, 0.8, 1.2):
        scenario = msgspec.structs.replace(small(within=within), steps=25)
        base, _ = run_method(scenario, SYNC)
        wins.append(base.step_s / run_method(scenario, METHODS["top_up"])[0].step_s)
    assert wins == sorted(wins) and wins[-1] > 1.5 * wins[0]


# --- the trace -----------------------------------------------------------------------------------


def test_the_trace_is_valid_and_every_leg_is_in_it_once_with_its_fate():
    trace = Tracer()
    simulation = played(TINY, METHODS["darts_barrier"], trace)
    document = json.loads(json.dumps(trace.trace_document()))
    rows = checked_spans(document)
    legs = [s for (process, row), spans in rows.items() if process >= ENGINE and row for s in spans]
    ledger = simulation.coordinator.core.ledger.accounts
    by_fate: dict[str, int] = defaultdict(int)
    for leg in legs:
        by_fate[leg["name"]] += leg["args"]["tokens"]
    assert {name: count for name, count in by_fate.items() if count} == {
        name: count for name, count in ledger.items() if count
    }, "spans are named by the ledger's words"
    used = {row for process, row in rows if process >= ENGINE}
    assert max(used) <= TINY.slots, "rows are slots"
    steps = [s["name"] for s in rows[STAGE, 1]]
    assert steps == ["step 1", "step 2", "step 3"]
    learner = [s["name"] for s in rows[LEARNER, 1]]
    assert learner.count("optimizer, publish") == 3
    assert learner.count("forward and backward") == 3 * TINY.prompts


@pytest.mark.parametrize("method", ["darts_barrier", "top_up_deferred_quorum", "k1"])
def test_a_trace_with_slow_rewards_and_lost_engines_is_whole(method: str):
    """Unjudged rewards give their row back; legs of an engine that is given up end there."""
    trace = Tracer()
    workload = Parametric(TINY.lengths, Policy(0.0), seed=0)
    machines = msgspec.structs.replace(TINY.machines(), reward_s=2.0, chunk_tokens=8)
    simulation = begin_simulation(
        TINY.method_config(METHODS[method]), machines, workload, observers=[trace]
    )
    simulation.run(seconds=0.3)
    simulation.tell(EngineLost(engine="e0", why="killed"))
    gone = simulation.engines.pop("e0")
    simulation.join("e0", gone.epoch + 1)
    simulation.run(seconds=1.0)
    broken = simulation.engines["e1"]
    frame = broken.flush(simulation.now, frozenset({1}))
    simulation.tell(msgspec.structs.replace(frame, sequence=frame.sequence + 5))  # a gap
    simulation.run()
    rows = checked_spans(trace.trace_document())
    names = {s["name"] for (process, row), spans in rows.items() if process >= ENGINE and row
             for s in spans}  # fmt: skip
    assert "lost" in names
    rewards = [row for process, row in rows if process == REWARDS]
    assert len(rewards) <= TINY.prompts * 2 * TINY.size * 2, "rows are used again"


def test_arrows_lead_from_the_last_chunk_over_the_choice_to_the_training():
    trace = Tracer()
    played(TINY, METHODS["first_m"], trace)
    document = trace.trace_document()
    checked_spans(document)
    found = arrows(document)
    assert len(found) == 3 * TINY.prompts * TINY.size
    for points in found:
        assert points[0]["pid"] >= ENGINE
        assert [point["pid"] for point in points[1:]] == [STAGE, LEARNER]


def test_a_trace_can_be_of_some_steps_only():
    trace = Tracer(first=1, last=1)
    played(TINY, METHODS["first_m"], trace)
    steps = [s["name"] for s in checked_spans(trace.trace_document())[STAGE, 1]]
    assert steps == ["step 2"]
