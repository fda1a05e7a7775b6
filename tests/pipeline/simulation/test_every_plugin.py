"""Every plug-in that decides and every recipe, in small runs with faults and over a resume.

Driven by the registry and by configs/recipes: what is added there is tried here, or fails.
"""

from __future__ import annotations

from functools import cache

import msgspec
import pytest

from launch.simulate.own_plugins import subject_in
from pipeline.config.load import load
from pipeline.config.recipes import builtin_names
from pipeline.plugins import registry
from pipeline.simulation.fuzz import MODES, Mode, Outcome, play
from pipeline.simulation.resume import STEPS, Life, case_of, differences
from pipeline.simulation.subject import Subject
from pipeline.stage import build
from tests.paths import ROOT

SMALL = ROOT / "tests" / "pipeline" / "simulation" / "small.yaml"
KINDS = ("prompt_order", "budget", "selector", "batch", "advantage")
AFTER = {
    "recipe=brorl": ("group.size=8",),  # hundreds of rollouts, at a size for a test
    "recipe=top_up_quorum": ("batch.quorum.size=3",),
    "batch=quorum": ("batch.quorum.size=3",),
    "budget=nudge": ("data.variants=[hint_1, hint_2]",),
    "selector=seele": ("data.variants=[solution]",),
    "selector=luffy": ("data.solution=solution",),
}
"""What else a name needs in runs of this size."""
PLUGINS = [f"{kind}={name}" for kind in KINDS for name in registry.builtin_names(kind)]
RECIPES = [f"recipe={name}" for name in builtin_names()]


@cache
def subject_of(*overrides: str) -> Subject:
    """What these settings decide by, over those of a simulated run of the quickstart's size."""
    words = (*overrides, *AFTER.get(overrides[0], ()))
    config = load(SMALL, words)
    subject = subject_in(config, " ".join((str(SMALL.relative_to(ROOT)), *words)))
    # many recipes differ in the learner alone: they decide alike, and are one subject
    decides = msgspec.json.encode((build.deciding(config), subject.settings))
    return _known.setdefault(decides, subject)


_known: dict[bytes, Subject] = {}


def told(outcome: Outcome) -> str:
    lines = [outcome.violation, *outcome.log[-12:], outcome.traceback]
    return "\n".join([*lines, f"again: {outcome.command}"])


@cache
def problem(subject: Subject, mode: Mode, seed: int) -> str:
    outcome = play(seed, mode, subject=subject)
    assert outcome.events > 10, "this run did something"
    return told(outcome) if outcome.violation else ""


@cache
def resume_problems(subject: Subject) -> list[str]:
    return list(differences(case_of(subject.on_policy())))


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
    for mode in MODES:
        assert problem(subject_of(name), mode, seed=1) == ""


@pytest.mark.parametrize("name", PLUGINS)
def test_every_plugin_holds_what_must_hold_whatever_fails(name: str):
    """On-policy, and where tokens may be stale."""
    assert problem(subject_of(name), Mode.CHAOS, seed=1) == ""
    assert problem(subject_of(name, "learner.max_staleness=2"), Mode.HEAL, seed=2) == ""


@pytest.mark.fault("a stop after any step, with any recipe", part="everything", by="simulator")
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_decides_the_same_after_a_stop_at_any_step(name: str):
    """Promise: two runs with one seed are the same, and a run that was stopped and resumed decides
    what the run that never stopped did.
    Bound: every step of six, on-policy. Where tokens may be stale a resume samples the last ones of
    what was under way anew, so there it is that the run ends well, and loses nothing.
    """
    subject = subject_of(name)
    assert resume_problems(subject) == []
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
