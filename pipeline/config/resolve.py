"""A tree of settings -> a checked `Config`, with a line for every problem in it.

One pass: old names, values by their types and ranges, plug-ins with their options,
pairs, then the paths. What does not fit is reported and stands at its default, so that
all is checked in one go.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipeline.config import other_names, paths, renamed, rules
from pipeline.config.docs import default_of
from pipeline.config.schema import Config, Plugin, WorkersConfig
from pipeline.config.values import Values, shown
from pipeline.config.yaml_tree import Branch, Leaf, Tree, plain
from pipeline.plugins import interfaces, registry
from pipeline.plugins.ranges import did_you_mean
from pipeline.redaction.passwords import secret_in_address

log = logging.getLogger("config")


class Resolver:
    """Of one file; `problems` grows by a line for each complaint."""

    def __init__(
        self, tree: Branch, path: Path | None, problems: list[str], *, weights: bool = True
    ) -> None:
        self._weights = weights
        self._tree = tree
        self._path = path
        self._problems = problems
        self._values = Values(self._problem)

    def config(self) -> Config:
        """The whole configuration; worth something only if no problem was found."""
        for line in renamed.move(self._tree, self._problem):
            log.warning("%s", line)
        self._refuse_passwords("", self._tree)
        plugins = tuple(registry.PACKAGES)
        values = self._values.fields(Config, self._tree, "", leave=plugins)
        group_size = values.get("group", default_of(Config, "group")).size
        self._workers: WorkersConfig = values.get("workers", default_of(Config, "workers"))
        for kind in plugins:
            given = self._tree.entries.get(kind)
            values[kind] = self._plugin(kind, given or default_of(Config, kind), group_size)
        if "model" not in values:
            if not self._values.given("model"):
                self._problem("model", "missing: the directory of a Hugging Face causal LM")
            values["model"] = ""
        config = Config(**values)
        for key, problem in rules.problems(config):
            self._problem(key, problem)
        return paths.resolved(config, self._path, self._problem, weights=self._weights)

    def _problem(self, key: str, text: str, where: str = "") -> None:
        place = where or self._values.place(key) or str(self._path or "settings")
        self._problems.append(f"{place}: {key}: {text}")

    def _refuse_passwords(self, key: str, tree: Tree) -> None:
        """Reports every address with a secret in it: what is loaded is kept in the run's files, and
        shown on terminals, on pages and by trackers."""
        if isinstance(tree, Leaf):
            texts = [tree.value] if isinstance(tree.value, str) else []
        else:
            texts = list(tree.entries)
            for name, entry in tree.entries.items():
                self._refuse_passwords(f"{key}.{name}" if key else name, entry)
        for text in texts:
            if secret := secret_in_address(text):
                self._problem(
                    key, f"has {secret} in its address, which would be kept in config.yaml and in "
                    "logs: leave it out, and name a variable of the environment instead "
                    "(reward.http.bearer_env; workers.env hands it to a function of yours)",
                    tree.where,
                )  # fmt: skip

    def _plugin(self, kind: str, given: Tree | Plugin, group_size: int) -> Plugin:
        options: Branch | None = None
        if isinstance(given, Plugin):
            name = given.name
        elif isinstance(given, Leaf) and isinstance(given.value, str):
            name = given.value
        elif isinstance(given, Branch) and len(given.entries) == 1:
            [(name, inner)] = given.entries.items()
            options = inner if isinstance(inner, Branch) else None
            if not isinstance(inner, Branch) and plain(inner) is not None:
                self._problem(
                    kind, f"found {shown(inner)} for {name}, expected its options, "
                    f"as in {kind}: {{{name}: {{option: value}}}}"
                )  # fmt: skip
                return default_of(Config, kind)
        else:
            found = f"{len(given.entries)} names" if isinstance(given, Branch) else shown(given)
            self._problem(
                kind, f"found {found}, expected a name, or one name with its options, "
                f"as in {kind}: {{name: {{option: value}}}}"
            )  # fmt: skip
            return default_of(Config, kind)
        try:
            struct = registry.options_type(registry.find_plugin(kind, name))
        except registry.PluginError as error:
            self._problem(kind, str(error))
            return default_of(Config, kind)
        return self._options(f"{kind}.{name}", name, struct, options, kind, group_size)

    def _options(
        self, key: str, name: str, struct: type[interfaces.Options], given: Branch | None,
        kind: str, group_size: int,
    ) -> Plugin:  # fmt: skip
        before = len(self._problems)
        known = {item.name: item for item in msgspec.structs.fields(struct)}
        values: dict[str, Any] = {}
        for option, entry in (given.entries if given else {}).items():
            if option not in known:
                hint = (
                    other_names.hint(option)
                    or did_you_mean(option, known)
                    or (f"; options: {', '.join(known)}" if known else f"; {name} has none")
                )
                self._problem(f"{key}.{option}", f"unknown option{hint}", entry.where)
                continue
            value = self._values.value(f"{key}.{option}", entry, known[option].type)
            if value is not msgspec.UNSET:
                values[option] = value
        for option, item in known.items():
            if item.required and option not in values and len(self._problems) == before:
                self._problem(key, f"needs the option {option}")
        if len(self._problems) > before:
            return Plugin(name=name)
        options = struct(**values)
        for text in self._clashes(options, group_size):
            about = f"{key}.{text.split(' ', 1)[0]}"
            places = (about, kind, "group.size")
            told = (self._values.place(place) for place in places if self._values.given(place))
            self._problem(key, text, next(told, ""))
        return Plugin(name=name, options=msgspec.to_builtins(options))

    def _clashes(self, options: interfaces.Options, group_size: int) -> Iterator[str]:
        """What does not fit together: options, `group.size`, the section `workers`."""
        yield from options.problems(group_size)
        if isinstance(options, interfaces.WorkerOptions):
            yield from options.worker_problems(self._workers)
