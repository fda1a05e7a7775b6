"""A simulated run's own plan: does the budget see the engines that generate the step?"""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from launch.simulate.scenario import Scenario, run_method
from pipeline.hardware.costs import EngineCost

BUDGET = ("budget=length_variance", "budget.length_variance.mean=0")
PUBLISHED = ("selector.dual_end.long_wait=group", "selector.dual_end.prune_at=2")


def steps_of(scenario: Scenario, *overrides: str) -> list[dict[str, Any]]:
    _, simulation = run_method(scenario, (*BUDGET, *overrides))
    return simulation.of("step")


@pytest.mark.parametrize(
    "engines, overrides",
    [
        (32, PUBLISHED),
        (32, ()),  # groups go on to the barrier
        (8, (*PUBLISHED, "budget.length_variance.time_weight=3")),
        (4, ("selector=all", "budget.length_variance.time_weight=2")),
        (8, ("selector=first_m",)),
    ],
)
def test_after_ten_steps_the_predicted_time_is_within_a_factor_of_two(
    engines: int, overrides: tuple[str, ...]
) -> None:
    scenario = Scenario(engines=engines, slots=256, steps=14, prompts=32, dataset=128)
    steps = steps_of(scenario, *overrides)[10:]
    assert all("generation_predicted_s" in step for step in steps)
    ratios = [step["generation_predicted_s"] / step["generation_s"] for step in steps]
    assert 0.5 < statistics.median(ratios) < 2.0, ratios
    assert all(step["budget"]["known"] for step in steps), "four epochs: averages are read"


def test_the_budget_asks_for_more_where_more_cost_nothing() -> None:
    """One engine whose token takes as long at 512 sequences as at one, and one on which it takes
    in proportion to them."""
    chosen = {
        name: steps_of(
            Scenario(engines=1, slots=512, steps=6, prompts=32, engine=EngineCost(points=curve)),
            *PUBLISHED,
            "budget.length_variance.time_weight=1.5",
        )[-1]["budget"]["mean"]
        for name, curve in {
            "flat": ((1, 0.01), (512, 0.0101)),
            "steep": ((1, 0.01), (512, 5.12)),
        }.items()
    }
    assert chosen["flat"] > 1.3 * chosen["steep"], chosen
