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
from pipeline.config import paths, recipes, shipped
from pipeline.config.resolve import Resolver
from pipeline.config.schema import Config, Plugin
from pipeline.config.yaml_tree import Branch, write
from pipeline.plugins import interfaces, registry
from pipeline.redaction.passwords import without_passwords


class ConfigError(Exception):
    """The configuration does not fit; `problems` has a line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = [without_passwords(problem) for problem in problems]
        super().__init__("\n".join(self.problems))


def load(path: Path | None, overrides: Sequence[str] = (), *, weights: bool = True) -> Config:
    """Read, override, check, and fetch what is named on the Hugging Face hub and not here. Raises
    ConfigError with all problems.

    Without a path everything is at its default but the overrides. A file that is not there may be
    one that comes with darts (`pipeline.config.shipped`).
    Overrides are `key=value`: `step.prompts=32`, `selector=dual_end` (its options
    at their defaults), `selector.dual_end.longest=2` (chooses `dual_end`), and
    `budget.redundancy=1` (an option of the plug-in in force). Later ones win. `recipe=dars`
    lies beneath all of them and over the file (`pipeline.config.recipes`). Without `weights` a
    model on the hub is fetched without them: for what asks its tokenizer only.
    """
    problems: list[str] = []
    tree = Branch("settings")
    if path is not None:
        path = shipped.config_file(path)
        tree = recipes.read_settings(path, str(path), problems)
    tree, overrides = recipes.laid(tree, overrides, path, problems)
    for override in overrides:
        changes.apply(tree, override, problems)
    resolver = Resolver(tree, path, problems, weights=weights)
    config = resolver.config()
    if problems:
        raise ConfigError(problems)
    return config


def dump(config: Config) -> str:
    """The configuration as YAML with every value written out; `load` gives the same back, but
    for the names of recipes, which stand in a comment: their settings are written out. What came
    from the hub stands with its name and commit."""
    saved = msgspec.structs.replace(paths.as_saved(config), recipe="")
    builtin: dict[str, Any] = msgspec.to_builtins(saved)
    for kind in registry.PACKAGES:
        plugin: Plugin = getattr(config, kind)
        builtin[kind] = {plugin.name: builtin[kind]["options"]} if plugin.options else plugin.name
    head = f"# recipe: {config.recipe} (its settings are written out below)\n"
    return (head if config.recipe else "") + write(builtin)


def plugin_class(kind: str, plugin: Plugin) -> tuple[type[Any], interfaces.Options]:
    """The class of a loaded configuration's plug-in, and its options to construct it with."""
    found = registry.find_plugin(kind, plugin.name)
    return found, msgspec.convert(plugin.options, registry.options_type(found))


def stop_texts(config: Config) -> tuple[str, ...]:
    """Texts that end a turn of a loaded configuration: its environment's, or `sampling.stop`."""
    options = environment_options(config)
    return options.stop if options else config.sampling.stop


def environment_options(config: Config) -> interfaces.EnvironmentOptions | None:
    """Options of a loaded configuration's environment; None: responses are of one turn."""
    found, options = plugin_class("environment", config.environment)
    if getattr(found, "idle", False):
        return None
    # a plug-in without options of its own is asked as any other
    plain = interfaces.EnvironmentOptions()
    return options if isinstance(options, interfaces.EnvironmentOptions) else plain
