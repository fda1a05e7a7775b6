"""Recipes: what they are laid over, what lies over them, and what each built-in one says."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import recipes
from pipeline.config.load import ConfigError, dump, load
from pipeline.config.recipes import ACTS_ON, About, about, builtin_names, builtin_recipes
from pipeline.stage.build import spare_groups
from tests.paths import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
MINE = """\
# Mine (ours): the first to finish.
# Acts on: budget, select
# Exact: ours
# Ours: all of it
budget: {uniform: {redundancy: 2}}
selector: first_m
step: {prompts: 3}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return path


def config_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(f"model: {ROOT / 'models' / 'chain-sums'}\n{text}")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(path, overrides)
    return raised.value.problems


def test_on_a_command_line_a_recipe_lies_over_the_file_and_beneath_the_other_overrides(mine: Path):
    loaded = load(QUICKSTART, ["step.prompts=5", f"recipe={mine}", "budget.most=3"])
    assert loaded.selector.name == "first_m", "the file says dual_end"
    assert loaded.step.prompts == 5
    assert loaded.budget.options["redundancy"] == 2.0
    assert loaded.budget.options["most"] == 3.0
    assert loaded.step.count == load(QUICKSTART).step.count, "what it does not say stays"


def test_a_recipe_that_a_file_names_lies_beneath_it(mine: Path, tmp_path: Path):
    text = f"recipe: {mine}\nbudget: {{uniform: {{most: 4}}}}\nstep: {{count: 9}}\n"
    loaded = load(config_of(tmp_path, text))
    assert loaded.selector.name == "first_m"
    assert (loaded.budget.options["redundancy"], loaded.budget.options["most"]) == (2.0, 4.0)
    assert (loaded.step.prompts, loaded.step.count) == (3, 9), "single keys of a section"
    other = load(config_of(tmp_path, f"recipe: {mine}\nselector: all\nbudget: uniform\n"))
    assert other.selector.name == "all", "another plug-in takes its place"
    assert other.budget.options["redundancy"] == 1.5, "and so does a bare name: with its defaults"


def test_of_several_recipes_the_last_wins_where_they_set_the_same(mine: Path):
    for text in (f"{mine},dr_grpo,gfpo", f'["{mine}", "dr_grpo", "gfpo"]'):
        loaded = load(QUICKSTART, [f"recipe={text}"])
        assert (loaded.selector.name, loaded.step.prompts) == ("gfpo", 3)
        assert loaded.learner.aggregate == "constant"
        assert loaded.recipe == f"{mine},dr_grpo,gfpo"


def test_a_dump_has_the_settings_written_out_and_needs_no_recipe(mine: Path, tmp_path: Path):
    loaded = load(QUICKSTART, [f"recipe={mine}"])
    text = dump(loaded)
    assert text.startswith(f"# recipe: {mine} (its settings are written out below)\n")
    mine.unlink()
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert dump(load(again)) == text.partition("\n")[2]


@pytest.mark.parametrize(
    "recipe, says",
    [
        ("darz", "found 'darz': no such recipe; did you mean dars?"),
        ("nowhere/mine.yaml", "found 'nowhere/mine.yaml': no such file; looked for"),
        ("nowhere.yml", "no such file"),
    ],
)
def test_a_recipe_that_is_not_there_is_named(recipe: str, says: str, tmp_path: Path):
    [problem] = problems(QUICKSTART, f"recipe={recipe}")
    assert problem.startswith(f"override recipe={recipe}: recipe: ")
    assert says in problem
    path = config_of(tmp_path, f"recipe: {recipe}\n")
    [problem] = problems(path)
    assert problem.startswith(f"{path}:2: recipe: ")
    assert says in problem


def test_problems_of_a_recipe_name_its_file_and_line(mine: Path):
    mine.write_text(MINE + "selector_: all\nlearner: {lr: -1}\nrecipe: dars\n")
    found = problems(QUICKSTART, f"recipe={mine}")
    assert found[0] == "mine.yaml:10: recipe: a recipe names no other; name both: recipe=a,b"
    assert any(line.startswith("mine.yaml:8: selector_: unknown key") for line in found)
    assert any(line.startswith("mine.yaml:9: learner.lr: found -1") for line in found)
    mine.write_text("- no\n")
    [problem] = problems(QUICKSTART, f"recipe={mine}")
    assert problem.startswith("mine.yaml:1: found ['no'], expected lines of `key: value`")
    [problem] = problems(QUICKSTART, "recipe.dars=1")
    assert "recipe" in problem


class Point:
    """An entry point of an installed package."""

    module = "tests.paths"

    def __init__(self, name: str, found: Any) -> None:
        self.name, self.value, self._found = name, f"tests.paths:{name}", found

    def load(self) -> Any:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


def test_installed_packages_offer_dicts_and_files(monkeypatch: pytest.MonkeyPatch):
    offered = [
        Point("of_a_dict", {"selector": "all", "budget": {"uniform": {"redundancy": 3}}}),
        Point("of_a_file", "../configs/recipes/gfpo.yaml"),
        Point("broken", ImportError("no such module")),
        Point("number", 3),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: offered)
    assert set(recipes.installed()) == {"of_a_dict", "of_a_file", "broken", "number"}
    dicts = load(QUICKSTART, ["recipe=of_a_dict"])
    assert (dicts.selector.name, dicts.budget.options["redundancy"]) == ("all", 3.0)
    assert load(QUICKSTART, ["recipe=of_a_file"]).selector.name == "gfpo"
    for name, says in (("broken", "ImportError: no such module"), ("number", "found 3, expected")):
        [problem] = problems(QUICKSTART, f"recipe={name}")
        assert problem.startswith(f"override recipe={name}: recipe: {name} (tests.paths:{name})")
        assert says in problem


def test_a_reserve_may_be_a_share_of_the_prompts():
    def spare(*overrides: str) -> int:
        return spare_groups(load(QUICKSTART, overrides).step)

    assert spare("step.prompts=6", "step.reserve_share=0.25") == 2, "halves up"
    assert spare("step.prompts=6", "step.reserve_share=0.25", "step.reserve=1") == 3
    assert spare() == 0


# --- the built-in ones --------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", builtin_recipes(), ids=builtin_names())
def test_a_built_in_recipe_says_where_it_is_from_and_what_is_exact(recipe: About):
    assert recipe.title
    assert recipe.source
    assert recipe.exact
    assert recipe.ours
    assert recipe.sentence.endswith(".")
    assert len(recipe.sentence) < 250
    assert recipe.acts_on
    assert set(recipe.acts_on) <= set(ACTS_ON)


@pytest.mark.parametrize("name", builtin_names())
def test_a_built_in_recipe_loads_over_the_quickstart_and_changes_it(name: str):
    loaded = load(QUICKSTART, [f"recipe={name}"])
    assert loaded.recipe == name
    assert dump(loaded) != dump(load(QUICKSTART))


def test_no_two_recipes_are_the_same():
    seen: dict[str, str] = {}
    for name in builtin_names():
        text = dump(load(QUICKSTART, [f"recipe={name}"])).partition("\n")[2]
        assert text not in seen, f"{name} is {seen.get(text)}"
        seen[text] = name


def test_the_head_of_a_recipe_may_run_over_lines(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "# A (B, arXiv 1 (v2)): one thing,\n# and another.\n# Acts on: stop, learn\n"
        "# Exact: all\n#   of it\n# Ours: no\nselector: all\n# Exact: not read\n"
    )
    found = about(path)
    assert (found.title, found.source) == ("A", "B, arXiv 1 (v2)")
    assert found.sentence == "one thing, and another."
    assert found.acts_on == ("stop", "learn")
    assert (found.exact, found.ours) == ("all of it", "no")
    path.write_text("selector: all\n")
    assert about(path).sentence == ""
