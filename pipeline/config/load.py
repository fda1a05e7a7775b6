"""A YAML file and overrides -> a checked `Config`, or every problem in one go.

Each problem is one line: where, which key, what was found, the rule, and the
nearest known key. Invariant: what `load` returns has every value in its range,
every path absolute and existing, and every plug-in found with all its options,
so that no part of darts checks a setting again; `dump` writes a file that loads
to the same. Must not know what a setting does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeline.config import overrides as changes
from pipeline.config.resolve import Resolver
from pipeline.config.schema import Config, Plugin
from pipeline.config.values import shown
from pipeline.config.yaml_tree import MAX_CHARACTERS, Branch, parse, write
from pipeline.plugins import interfaces, registry


class ConfigError(Exception):
    """The configuration does not fit; `problems` has a line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read, override, check. Raises ConfigError with all problems.

    Without a path everything is at its default but the overrides.
    Overrides are `key=value`: `step.prompts=32`, `selector=dual_end` (its options
    at their defaults), `selector.dual_end.longest=2` (chooses `dual_end`), and
    `budget.redundancy=1` (an option of the plug-in in force). Later ones win.
    """
    problems: list[str] = []
    tree = Branch("settings") if path is None else _read(path, problems)
    for override in overrides:
        changes.apply(tree, override, problems)
    resolver = Resolver(tree, path, problems)
    config = resolver.config()
    if problems:
        raise ConfigError(problems)
    return config


def dump(config: Config) -> str:
    """The configuration as YAML with every value written out; `load` gives the same back."""
    builtin: dict[str, Any] = msgspec.to_builtins(config)
    for kind in registry.PACKAGES:
        plugin: Plugin = getattr(config, kind)
        builtin[kind] = {plugin.name: builtin[kind]["options"]} if plugin.options else plugin.name
    return write(builtin)


def plugin_class(kind: str, plugin: Plugin) -> tuple[type[Any], interfaces.Options]:
    """The class of a loaded configuration's plug-in, and its options to construct it with."""
    found = registry.find_plugin(kind, plugin.name)
    return found, msgspec.convert(plugin.options, registry.options_type(found))


def environment_options(config: Config) -> interfaces.EnvironmentOptions | None:
    """Options of a loaded configuration's environment; None: responses are of one turn."""
    found, options = plugin_class("environment", config.environment)
    if getattr(found, "idle", False):
        return None
    # a plug-in without options of its own is asked as any other
    plain = interfaces.EnvironmentOptions()
    return options if isinstance(options, interfaces.EnvironmentOptions) else plain


def _read(path: Path, problems: list[str]) -> Branch:
    empty = Branch(str(path))
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        cure = "expected a YAML file in UTF-8; mend the path, or save it as one"
        problems.append(f"{path}: cannot be read: {why}; {cure}")
        return empty
    before = len(problems)
    tree = parse(text, lambda line: f"{path}:{line}", problems)
    if isinstance(tree, Branch):
        return tree
    if tree is not None and len(problems) == before:
        problems.append(f"{path}:1: found {shown(tree)}, expected lines of `key: value`")
    return empty
