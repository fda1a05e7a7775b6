"""`darts simulate --preset recipes`: every recipe has its place, and tiny runs of some."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from launch.simulate import CONFIG, headlines, recipes_at_scale
from launch.simulate.headlines import HEADLINES, Counts, Headline
from launch.simulate.recipes_at_scale import OF_LIMIT, TOKEN_OPTIONS, Case, Row
from launch.simulate.scenario import Scenario
from pipeline.config import recipes
from pipeline.config.docs import option_documentation
from pipeline.config.load import load
from pipeline.config.recipes import FOLDER, about, builtin_names
from pipeline.config.yaml_tree import plain
from pipeline.plugins import registry
from pipeline.simulation.workload import Lengths
from tests.paths import ROOT

TINY = Scenario(
    engines=2,
    slots=32,
    lengths=Lengths(median=60, between=0.4, within=0.8),
    limit=512,
    prompts=6,
    steps=3,
    dataset=48,
)


def row(recipe: str, simulated: float | None) -> Row:
    return Row(
        recipe=recipe, setup="", speed_up=1.5, per_token=1.2, per_signal=1.3,
        sampled_per_trained=1.1, depth=3.0, idle=0.4, simulated=simulated,
    )  # fmt: skip


def test_every_recipe_is_simulated_or_listed_with_a_reason():
    simulated = [case.recipe for case in recipes_at_scale.cases()]
    learner = recipes_at_scale.of_learner()
    assert sorted([*simulated, *learner, *recipes_at_scale.NOT_SIMULATED]) == builtin_names()
    for name in simulated:
        assert name in HEADLINES, f"{name}: say in headlines what its paper reports, or NONE"
    assert set(HEADLINES) <= set(builtin_names())
    text = recipes_at_scale.recipe_markdown([row(name, None) for name in simulated])
    for name in builtin_names():
        assert f"`{name}`" in text


def test_what_counts_tokens_in_a_recipe_grows_with_the_limit():
    assert load(ROOT / "configs" / "quickstart.yaml").sampling.max_tokens == OF_LIMIT
    for name in builtin_names():
        path = FOLDER / f"{name}.yaml"
        tree: Any = plain(recipes.read_settings(path, name, []))
        for kind in registry.PACKAGES:
            of_kind = tree.get(kind)
            if not isinstance(of_kind, dict):
                continue
            [(plugin, options)] = of_kind.items()
            struct = registry.options_type(registry.find_plugin(kind, plugin))
            meaning = option_documentation(struct)
            for key in options:
                counts_tokens = meaning[key].startswith(("Tokens", "Last tokens"))
                assert counts_tokens == (f"{kind}.{plugin}.{key}" in TOKEN_OPTIONS), (name, key)
        if "for a limit of 128" in about(path).ours or "128 tokens" in about(path).ours:
            case = Case(recipe=name, scenario=TINY)
            _, found = recipes_at_scale.settings_of(case)
            scaled = (*TOKEN_OPTIONS, "placement.kv_tokens")
            assert any(setting.startswith(scaled) for setting in found), name
    _, found = recipes_at_scale.settings_of(Case(recipe="ulorl", scenario=TINY))
    assert "selector.ulorl.segment=128" in found, "a quarter of the limit, as in the recipe"


def test_a_recipe_lies_over_synchronous_rollout_with_its_own_group_size():
    scenario, found = recipes_at_scale.settings_of(Case(recipe="minpro", scenario=TINY))
    config = scenario.method_config(found)
    assert (config.selector.name, config.budget.options["redundancy"]) == ("all", 1.0)
    assert (config.learner.max_staleness, config.learner.overlap) == (4, "group")
    scenario, found = recipes_at_scale.settings_of(Case(recipe="mc_grpo", scenario=TINY))
    assert scenario.method_config(found).group.size == 9
    assert load(CONFIG).group.size == 8
    _, found = recipes_at_scale.settings_of(Case(recipe="siri", more=("budget.siri.period=12",)))
    assert TINY.method_config(found).budget.options["period"] == 12


def test_a_tiny_preset_holds_recipes_against_synchronous_rollout():
    chosen = [
        Case(recipe="first_m", scenario=TINY),
        Case(recipe="april", setup="tiny", scenario=TINY),
        Case(recipe="sorted_rl", scenario=TINY),
    ]
    said: list[str] = []
    rows = recipes_at_scale.recipe_table(said.append, chosen)
    first, april, in_order = rows
    assert [line.partition(":")[0] for line in said] == ["first_m", "april", "sorted_rl"]
    assert first.speed_up > 1.0 and first.sampled_per_trained > 1.0 and first.simulated is None
    assert first.per_token < first.speed_up, "the short ones are trained on"
    assert april.sampled_per_trained == pytest.approx(1.0, abs=0.3)
    assert april.simulated and in_order.simulated
    assert rows == recipes_at_scale.recipe_table(said.append, chosen), "by its seed"
    text = recipes_at_scale.recipe_markdown(rows)
    assert "| `april` (tiny) | " in text
    assert msgspec.convert(msgspec.to_builtins(rows), list[Row]) == rows


def test_a_deviation_is_from_the_nearest_figure_that_was_published(
    monkeypatch: pytest.MonkeyPatch,
):
    figure = Headline(says="2x to 4x", counts=Counts.STEP, low=2.0, high=4.0, why="of a reason.")
    found = [figure.deviation(x) for x in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert found == pytest.approx([-0.5, 0.0, 0.0, 0.0, 0.25])
    open_ended = Headline(says="over 2x", counts=Counts.STEP, low=2.0, high=math.inf)
    assert open_ended.deviation(9.0) == 0.0
    monkeypatch.setitem(headlines.HEADLINES, "areal", figure)
    near, far = row("areal", 1.8), row("areal", 1.6)
    assert not recipes_at_scale.missed(near) and recipes_at_scale.missed(far)
    assert not recipes_at_scale.missed(row("areal", None))
    text = recipes_at_scale.recipe_markdown([far])
    assert "| 2x to 4x (step) | 1.60 | -20% |" in text
    assert "- `areal`: of a reason." in text
    assert "of a reason" not in recipes_at_scale.recipe_markdown([near])
