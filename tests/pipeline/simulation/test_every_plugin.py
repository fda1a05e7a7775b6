"""Every plug-in that decides and every recipe, in small runs with faults and over a resume.

Driven by the registry and by configs/recipes: what is added there is tried here, or fails.
"""

from __future__ import annotations

from functools import cache

import pytest

from launch.simulate.own_plugins import subject_in
from pipeline.config.load import load
from pipeline.config.recipes import builtin_names
from pipeline.plugins import registry
from pipeline.simulation.fuzz import MODES, Mode, Outcome, play
from pipeline.simulation.resume import STEPS, Life, case_of, differences
from pipeline.simulation.subject import Subject
from tests.paths import ROOT

SMALL = ROOT / "tests" / "pipeline" / "simulation" / "small.yaml"
KINDS = ("prompt_order", "budget", "selector", "batch", "advantage")
AFTER = {"brorl": ("group.size=8",)}  # a recipe with hundreds of rollouts, at a size for a test
PLUGINS = {
    f"{kind}={name}": (f"{kind}={name}",) for kind in KINDS for name in registry.builtin_names(kind)
}
STALE = {f"{name}, stale": (*given, "learner.max_staleness=2") for name, given in PLUGINS.items()}
RECIPES = {
    f"recipe={name}": (f"recipe={name}", *AFTER.get(name, ())) for name in builtin_names()
}


@cache
def subject_of(overrides: tuple[str, ...]) -> Subject:
    """What these settings decide by, over those of a simulated run of the quickstart's size."""
    return subject_in(load(SMALL, overrides), " ".join((str(SMALL.relative_to(ROOT)), *overrides)))


def told(outcome: Outcome) -> str:
    lines = [outcome.violation, *outcome.log[-12:], outcome.traceback]
    return "\n".join([*lines, f"again: {outcome.command}"])


def tried(overrides: tuple[str, ...], modes: tuple[Mode, ...], seed: int = 1) -> None:
    for mode in modes:
        outcome = play(seed, mode, subject=subject_of(overrides))
        assert outcome.violation == "", told(outcome)
        assert outcome.events > 10, "this run did something"


@pytest.mark.fault(
    "frames, engines, learner, stage, rewards and weights fail, with every plug-in and recipe",
    part="everything",
    by="simulator",
)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_holds_what_must_hold_whatever_fails(name: str):
    """Promise: nothing is lost, the ledger balances, no token is trained on that is too old, and
    the run does all its steps or stops and says why.
    Bound: one seed of each kind of run with faults.
    """
    tried(RECIPES[name], MODES)


@pytest.mark.parametrize("name", PLUGINS)
def test_every_plugin_holds_what_must_hold_whatever_fails(name: str):
    tried(PLUGINS[name], (Mode.CHAOS, Mode.HANG))


@pytest.mark.parametrize("name", STALE)
def test_every_plugin_holds_it_where_tokens_may_be_stale(name: str):
    tried(STALE[name], (Mode.CHAOS, Mode.HEAL), seed=2)


@pytest.mark.fault("a stop after any step, with any recipe", part="everything", by="simulator")
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_decides_the_same_after_a_stop_at_any_step(name: str):
    """Promise: two runs with one seed are the same, and a run that was stopped and resumed decides
    what the run that never stopped did.
    Bound: every step of six, on-policy. Where tokens may be stale a resume samples the last ones of
    what was under way anew, so there it is that the run ends well, and loses nothing.
    """
    subject = subject_of(RECIPES[name])
    assert list(differences(case_of(subject.on_policy()))) == []
    if not subject.settings.max_staleness:
        return
    case = case_of(subject)
    whole, again = Life(case), Life(case)
    whole.run()
    again.run()
    assert again.told == whole.told
    assert set(whole.cuts) == set(range(1, STEPS + 1))
    for step in range(1, STEPS):
        resumed = Life(case, whole.cuts[step])
        resumed.run()
        assert resumed.over is not None
        assert resumed.over.error == "", f"after step {step}"
        assert resumed.coordinator.core.step == STEPS
        assert resumed.coordinator.core.ledger.imbalance == 0
