"""The documents are true: their code runs, their commands load, their links lead somewhere."""

import re
import shlex
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from launch.docs import pages
from pipeline.config.load import load
from pipeline.plugins import actions, testing, views
from tests.paths import ROOT
from tests.pipeline.coordinator.world import World, plugins_of, settings_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Names that a reader is to replace by his own.
OWN = re.compile(r"CONFIG|NAME|my_selectors|selector[=.]quickest|my_data|\.\.\.")
TOP_FOLDERS = (
    "pipeline|engines|learner|launch|darts|tests|configs|docs|scripts|requirements|models|examples"
)
NAME = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def run_blocks(page: Path) -> dict[str, Any]:
    """The names that a page's Python blocks leave behind."""
    document = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()]).parse(page)
    for example in document.examples():
        example.evaluate()
    return document.namespace


@NAME
def test_python_blocks_run_from_top_to_bottom(page: Path):
    run_blocks(page)


@pytest.mark.parametrize("name", ["Quickest", "Patient", "CutTail", "Alternating"])
def test_selectors_of_the_page_carry_a_job_with_faults_to_its_end(name: str):
    selector = run_blocks(ROOT / "docs" / "selectors.md")[name]()
    plugins = msgspec.structs.replace(plugins_of(seed=3), selector=selector)
    world = World(3, settings_of(seed=3), plugins, faults=0.05)
    world.start()
    world.run()
    assert world.over is not None
    assert world.over.error == ""
    assert world.coordinator.core.step == world.settings.steps


def commands(page: Path) -> list[list[str]]:
    """Command lines of indented blocks: `darts train CONFIG key=value ...`."""
    lines = re.findall(r"^    (?:\$ )?(darts (?:train|eval) .*)$", page.read_text(), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines if not OWN.search(line)]


@NAME
def test_command_lines_load_with_their_settings(page: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        plain = [word for word in words[2:] if not word.startswith("--")]
        if plain and plain[0].endswith(".yaml"):
            load(Path(plain[0]), [word for word in plain[1:] if "=" in word])


@NAME
def test_files_that_a_page_links_to_exist(page: Path):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_files_of_the_repository_that_a_page_names_exist(page: Path):
    named = re.findall(rf"`((?:{TOP_FOLDERS})/[\w./-]+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@NAME
def test_make_targets_that_a_page_names_exist(page: Path):
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^    )make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named - known == set()


def test_teaching_selector_and_the_packaged_one_say_the_same():
    packaged = ROOT / "tests/pipeline/plugins/darts_example_selector/src/darts_example_selector"
    in_package = (packaged / "__init__.py").read_text()
    page = (ROOT / "docs" / "selectors.md").read_text()
    for line in ("the {len(ids)} quickest of {len(ended)}", "Options of the `quickest` selector."):
        assert line in in_package
        assert line in page


@pytest.mark.parametrize("name", pages.PAGES)
def test_pages_made_from_the_source_are_up_to_date(name: str):
    written = (ROOT / name).read_text()
    assert written == pages.PAGES[name](), "run: python -m launch.docs.pages"


SEEN = {
    "selectors.md": (views.GroupView, views.MemberView),
    "plugins.md": (
        *(views.PlanView, views.SourceView, views.PromptView, views.BudgetView, views.OpenView),
        *(views.BatchView, views.GroupFacts, views.KeptView, views.Outcome, views.GroupOutcome),
        views.EndedView,
    ),
}


@pytest.mark.parametrize(
    "page, view", [(page, view) for page, found in SEEN.items() for view in found]
)
def test_every_field_that_a_plugin_sees_is_explained(page: str, view: type[msgspec.Struct]):
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    words = re.findall(r"`([^`]+)`", text)
    named = {part for word in words for part in re.split(r"[.(]", word)}
    assert set(view.__struct_fields__) - named == set()


@pytest.mark.parametrize(
    "page, answers",
    [
        ("selectors.md", get_args(actions.AnyAction)),
        ("plugins.md", (*get_args(actions.BatchAction), actions.Plan, actions.Allocation)),
        ("plugins.md", (actions.Advantages, actions.NoSignal)),
    ],
)
def test_every_answer_is_explained_with_its_fields(page: str, answers: tuple[type[Any], ...]):
    text = (ROOT / "docs" / page).read_text()
    for answer in answers:
        forms = re.findall(rf"`{answer.__name__}\([^`]*\)`", text)
        fields = [f for f in answer.__struct_fields__ if f not in ("why", "kind")]
        assert any(all(f in form for f in fields) for form in forms), answer.__name__


def test_every_builder_is_in_the_table_of_builders():
    text = (ROOT / "docs" / "plugins.md").read_text()
    table = text.partition("## Builders for tests")[2]
    assert [n for n in testing.__all__ if n != "Constant" and f"{n}(" not in table] == []
