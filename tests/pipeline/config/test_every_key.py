"""Every setting has a reader: a key that nothing reads is a promise that nobody keeps.

The rule, on the source alone: `section.field` is read where a section is known to
be that section (`config.section`, a name with the section's class as annotation, or
a name that one of these was assigned to).
"""

import ast
import inspect
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.docs import documentation, sections
from pipeline.coordinator.state import Settings
from pipeline.plugins import interfaces, registry
from tests.paths import ROOT

# What only describes or checks a setting is no reader of it.
DESCRIBES = {
    *("docs.py", "paths.py", "rules.py", "schema.py", "setting_types.py"),
    "without_effect.py",
}
SOURCES = [
    ast.parse(path.read_text())
    for package in ("pipeline", "engines", "learner", "launch")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name not in DESCRIBES
]
SECTIONS = sections()


def last_name(node: ast.AST | None) -> str:
    """`self._config` -> _config, `Config | None` -> Config, `"Config"` -> Config."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.BinOp):
        return last_name(node.left)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return ""


def annotated(tree: ast.Module, cls: str) -> set[str]:
    """Names with this class as annotation: arguments, variables, attributes."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and last_name(node.annotation) == cls:
            found.add(node.arg)
        elif isinstance(node, ast.AnnAssign) and last_name(node.annotation) == cls:
            found.add(last_name(node.target))
    return found


def pairs(target: ast.expr, value: ast.expr) -> Iterable[tuple[ast.expr, ast.expr]]:
    """`a, b = x, y` is two assignments."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return zip(target.elts, value.elts, strict=True)
    return [(target, value)]


def spread(tree: ast.Module, known: set[str], section: str = "") -> set[str]:
    """`known`, and every name assigned from one of them (or from `config.section`)."""
    assigned = [
        pair
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        for pair in pairs(target, node.value)
    ]
    size = -1
    while size != len(known):
        size = len(known)
        for target, value in assigned:
            options = value.values if isinstance(value, ast.BoolOp) else [value]
            if any(last_name(v) in known or is_section(v, section) for v in options):
                known = known | {last_name(target)}
    return known


def is_section(node: ast.expr, section: str) -> bool:
    """`config.section`, whoever holds the config; of a section in another, whoever holds that."""
    outer, _, name = section.rpartition(".")
    return (
        isinstance(node, ast.Attribute)
        and node.attr == name
        and (outer != "" or last_name(node.value) in ("config", "_config", "loaded"))
    )


def fields_read(section: str, cls: str, trees: Sequence[ast.Module]) -> set[str]:
    """Fields of this section that the sources read; of the configuration itself for ''."""
    found: set[str] = set()
    for tree in trees:
        names = spread(tree, annotated(tree, cls), section) if section else set[str]()
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
                continue
            base = node.value
            of_section = is_section(base, section) or last_name(base) in names
            if of_section or (not section and is_section(node, node.attr)):
                found.add(node.attr)
    return found


def is_read(key: str, cls: str, trees: Sequence[ast.Module]) -> bool:
    """Whether some source reads the dotted key; `cls` is the class of its section."""
    section, _, field = key.rpartition(".")
    return field in fields_read(section, cls, trees)


@cache
def read_of(section: str) -> set[str]:
    """Fields of a section that are read."""
    return fields_read(section, SECTIONS[section].__name__ if section else "Config", SOURCES)


def plugins_made(trees: list[ast.Module]) -> set[str]:
    """Kinds of plug-in constructed by name: `make("budget")`."""
    return {
        node.args[0].value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and last_name(node.func) == "make"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }


@pytest.mark.parametrize("key", documentation())
def test_every_key_of_the_configuration_is_read_by_something(key: str):
    section, _, field = key.rpartition(".")
    assert field in read_of(section) or key in plugins_made(SOURCES)


@pytest.mark.parametrize("key", documentation())
def test_every_key_says_what_it_is(key: str):
    text = documentation()[key]
    assert len(text) > 10
    assert text[0].isupper() or text[0] == "`"


@pytest.mark.parametrize("field", Settings.__struct_fields__)
def test_every_setting_of_the_coordinator_is_read_by_one_of_its_parts(field: str):
    assert field in coordinator_settings()


@cache
def coordinator_settings() -> set[str]:
    return fields_read("settings", "Settings", [_renamed(tree) for tree in SOURCES])


def _renamed(tree: ast.Module) -> ast.Module:
    """`core.settings` reads like `config.settings`, for the same rule."""

    class Rename(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.Name:
            return ast.Name(id="config" if node.id == "core" else node.id, ctx=node.ctx)

        def visit_Attribute(self, node: ast.Attribute) -> ast.Attribute:
            attr = "config" if node.attr in ("_core", "core") else node.attr
            return ast.Attribute(value=self.visit(node.value), attr=attr, ctx=node.ctx)

    return ast.fix_missing_locations(Rename().visit(ast.parse(ast.unparse(tree))))


HOUSE = [(kind, name) for kind in registry.PACKAGES for name in registry.builtin_names(kind)]


@pytest.mark.parametrize("kind, name", HOUSE)
def test_every_option_of_a_plugin_is_read_where_it_is_declared(kind: str, name: str):
    options = registry.options_type(registry.find_plugin(kind, name))
    for cls in options.__mro__:
        if not issubclass(cls, interfaces.Options) or cls is interfaces.Options:
            continue
        own = inspect.get_annotations(cls)
        unread = [field for field in own if not option_is_read(cls, field)]
        assert unread == [], f"{cls.__name__}: no reader"


def option_is_read(cls: type[Any], field: str) -> bool:
    """Read from an instance named `options` or `_options`, outside of `problems`."""
    base = cls in (
        interfaces.RewardOptions,
        interfaces.EnvironmentOptions,
    )  # the core's
    trees = SOURCES if base else [ast.parse(Path(inspect.getfile(cls)).read_text())]
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == field
        and (last_name(node.value) in ("options", "_options") or isinstance(node.value, ast.BoolOp))
        for tree in trees
        for node in ast.walk(tree)
    )


# --- the rule itself ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "def f(config): return config.engine.slots",
        "class A:\n def f(self): return self._config.engine.slots",
        "def f(section: EngineConfig): return section.slots",
        "def f(config):\n mine = config.engine\n return mine.slots",
        "def f(given: EngineConfig):\n own, x = given, 1\n return own.slots",
    ],
)
def test_rule_finds_a_reader(code: str):
    assert is_read("engine.slots", "EngineConfig", [ast.parse(code)])


@pytest.mark.parametrize(
    "code",
    [
        "def f(engine): return engine.slots",  # an engine, not its section
        "def f(config): return config.learner.slots",
        "def f(config): config.engine.slots = 1",
        "def f(section: LearnerConfig): return section.slots",
        "'engine.slots'",
    ],
)
def test_rule_fails_for_a_key_that_nothing_reads(code: str):
    assert not is_read("engine.slots", "EngineConfig", [ast.parse(code)])


@pytest.mark.parametrize("key", ["engine.kv_pages", "step.warp", "nonsense"])
def test_rule_fails_for_a_key_that_does_not_exist(key: str):
    section, _, field = key.rpartition(".")
    assert field not in read_of(section)
