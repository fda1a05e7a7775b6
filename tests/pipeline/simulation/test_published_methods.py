"""Published methods, budget and selector together, in simulated runs: what they are for happens.

On-policy a run that is stopped after any step and resumed is also the run that never stopped.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.coordinator.state import Plugins
from pipeline.hardware.costs import LearnerCost
from pipeline.plugins import registry
from pipeline.simulation.resume import MACHINES, SEED, SETTINGS, STEPS, Case, Life, differences

M_EACH: tuple[str, dict[str, Any]] = ("uniform", {"redundancy": 1})
TWICE: tuple[str, dict[str, Any]] = ("uniform", {"redundancy": 2})

ON_POLICY: dict[str, tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]], set[str]]] = {
    "dars": (M_EACH, ("dars", {}), {"second_stage"}),
    "pilot_commit": (
        ("pilot_commit", {}),
        ("pilot_commit", {}),
        {"hard", "solved", "pilots", "committed"},
    ),
    "xrpo": (("xrpo", {}), ("xrpo", {}), {"round"}),
    "seele": (("seele", {}), ("seele", {}), {"bare", "hinted"}),
    "arrol": (TWICE, ("arrol", {"checkpoint": 8}), {"pruned"}),
    "duet": (("duet", {}), ("duet", {"checkpoint": 8}), {"gated"}),
    "echo": (TWICE, ("echo", {"window": 4, "floor": 0.9}), {"weak"}),
    "dot": (M_EACH, ("dot", {"every": 2, "deviations": 1.0}), {"outlier"}),
    "extremes": (TWICE, ("extremes", {}), set()),
    "gfpo": (TWICE, ("gfpo", {}), set()),
    "reward_variance": (("reward_variance", {}), ("all", {}), set()),
    "dart_gui": (("dart_gui", {}), ("dart_gui", {}), {"stored"}),
    "luffy": (M_EACH, ("luffy", {}), {"solution"}),
    "siri": (("siri", {"period": 4}), ("all", {}), set()),
    "tti": (("tti", {}), ("all", {}), set()),
    "nudge": (("nudge", {}), ("all", {}), set()),
}
"""Method -> budget, selector, kinds of actions that are seen in its run."""
AHEAD: dict[str, tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]], set[str]]] = {
    "april": (M_EACH, ("april", {}), {"partial"}),
    "ulorl": (M_EACH, ("ulorl", {"segment": 16}), {"segment"}),
    "sorted_rl cached": (M_EACH, ("sorted_rl", {}), {"restarted"}),
    "sorted_rl strict": (M_EACH, ("sorted_rl", {"mode": "strict"}), {"restarted"}),
    "pilot_commit": (
        ("pilot_commit", {}),
        ("pilot_commit", {}),
        {"hard", "solved", "pilots", "committed"},
    ),
}
"""The same with generation ahead of training."""
STALENESS = {"sorted_rl cached": 1}
"""Where fewer than four versions are what makes it act."""
BUSY = msgspec.structs.replace(
    MACHINES, slots=4, learner=LearnerCost(train_s=2**-13, group_s=2**-6, step_s=2**-6)
)
"""Machines whose publish comes while responses grow."""


def case_of(
    budget: tuple[str, dict[str, Any]], selector: tuple[str, dict[str, Any]], **settings: Any
) -> Case:
    def made(kind: str, name: str, **options: Any) -> Any:
        cls = registry.find_plugin(kind, name)
        extra = {"seed": SEED} if kind == "prompt_order" else {}
        return cls(registry.options_type(cls)(**options), **extra)

    def make() -> Plugins:
        return Plugins(
            prompt_order=made("prompt_order", "shuffled"),
            budget=made("budget", budget[0], **budget[1]),
            selector=made("selector", selector[0], **selector[1]),
            batch=made("batch", "fifo"),
            advantage=made("advantage", "grpo", drop_equal=True),
        )

    changed = msgspec.structs.replace(SETTINGS, **settings)
    return Case(make=make, settings=changed, columns=("hint_1", "hint_2", "solution"), solved=True)


def kinds(life: Life) -> set[str]:
    return {told["kind"] for told in life.told if told["what"] == "decision" and "kind" in told}


@pytest.mark.parametrize("method", ON_POLICY)
def test_an_on_policy_method_acts_trains_and_resumes(method: str) -> None:
    budget, selector, acts = ON_POLICY[method]
    case = case_of(budget, selector, tries=20.0)
    life = Life(case)
    life.run()
    assert life.coordinator.core.step == STEPS
    assert life.coordinator.core.version > 0, "something was trained on"
    assert acts <= kinds(life)
    assert list(differences(case)) == []


@pytest.mark.parametrize("method", AHEAD)
def test_a_method_of_stale_tokens_acts_and_trains(method: str) -> None:
    budget, selector, acts = AHEAD[method]
    case = case_of(budget, selector, tries=20.0, max_staleness=STALENESS.get(method, 4))
    machines = BUSY if method.startswith("sorted_rl") else MACHINES
    life = Life(msgspec.structs.replace(case, machines=machines))
    life.run()
    assert life.coordinator.core.step == STEPS
    assert life.coordinator.core.version > 0, "something was trained on"
    assert acts <= kinds(life)
