"""A YAML file and overrides -> a checked `Config`, or every problem in one go.

Each problem is one line: where, which key, what was found, the rule, and the
nearest known key. Invariant: what `load` returns has every value in its range,
every path absolute and existing, and every plug-in found with all its options,
so that no part of darts checks a setting again; `dump` writes a file that loads
to the same. Must not know what a setting does.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import yaml

from pipeline import configrules, plugins
from pipeline.config import Config, Plugin, Section
from pipeline.places import look_for
from pipeline.yamltree import MAX_CHARACTERS, Branch, Leaf, Tree, parse, plain, scalar


class ConfigError(Exception):
    """The configuration does not fit; `problems` has a line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override, check. Raises ConfigError with all problems.

    Overrides are `key=value`: `step.prompts=32`, `selector=dual_end` (its options
    at their defaults), `selector.dual_end.longest=2` (chooses `dual_end`), and
    `budget.redundancy=1` (an option of the plug-in in force). Later ones win.
    """
    problems: list[str] = []
    tree = _read(path, problems)
    for override in overrides:
        _override(tree, override, problems)
    resolver = _Resolver(tree, path, problems)
    config = resolver.config()
    if problems:
        raise ConfigError(problems)
    return config


def dump(config: Config) -> str:
    """The configuration as YAML with every value written out; `load` gives the same back."""
    builtin: dict[str, Any] = msgspec.to_builtins(config)
    for seam in plugins.PACKAGES:
        plugin: Plugin = getattr(config, seam)
        builtin[seam] = {plugin.name: builtin[seam]["options"]} if plugin.options else plugin.name
    return yaml.dump(builtin, Dumper=_Dumper, sort_keys=False, width=100)


def plugin_class(seam: str, plugin: Plugin) -> tuple[type[Any], plugins.Options]:
    """The class of a loaded configuration's plug-in, and its options to construct it with."""
    found = plugins.find(seam, plugin.name)
    return found, msgspec.convert(plugin.options, plugins.options_type(found))


def documentation() -> dict[str, str]:
    """Dotted key -> what its docstring in `pipeline.config` says, in the file's order."""
    documented: dict[str, str] = {}
    own = option_documentation(Config)
    for item in msgspec.structs.fields(Config):
        if item.name in _sections():
            for key, text in option_documentation(_sections()[item.name]).items():
                documented[f"{item.name}.{key}"] = text
        else:
            documented[item.name] = own.get(item.name, "")
    return documented


def option_documentation(struct: type[Any]) -> dict[str, str]:
    """Field -> docstring under it, for a section or a plug-in's Options, bases first."""
    documented: dict[str, str] = {}
    for cls in reversed(struct.__mro__):
        if "__annotations__" not in vars(cls) or not issubclass(cls, msgspec.Struct):
            continue
        [body] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)
        for line, after in zip(body.body, [*body.body[1:], None], strict=True):
            if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
                continue
            text = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = inspect.cleandoc(str(after.value.value))
            documented[line.target.id] = text
    return {item.name: documented.get(item.name, "") for item in msgspec.structs.fields(struct)}


# --- reading -----------------------------------------------------------------------------------


def _read(path: Path, problems: list[str]) -> Branch:
    empty = Branch(str(path))
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        problems.append(f"{path}: cannot be read: {why}")
        return empty
    before = len(problems)
    tree = parse(text, lambda line: f"{path}:{line}", problems)
    if isinstance(tree, Branch):
        return tree
    if tree is not None and len(problems) == before:
        problems.append(f"{path}:1: found {_shown(tree)}, expected lines of `key: value`")
    return empty


def _override(tree: Branch, override: str, problems: list[str]) -> None:
    key, equals, text = override.partition("=")
    where = f"override {override}"
    path = key.strip().split(".")
    if not equals or not all(path):
        problems.append(f"{where}: expected key=value, for instance step.prompts=32")
        return
    if path[0] not in {item.name for item in msgspec.structs.fields(Config)}:
        problems.append(f"{where}: {key}: unknown key{_near_key(key, ())}")
        return
    value: Tree | None = Leaf(where, scalar(text), text)
    if text[:1] in ("[", "{", '"', "'"):
        value = parse(text, lambda _: where, problems)
        if value is None:
            return
    if path[0] in plugins.PACKAGES:
        path = _plugin_path(tree, path)
    branch = tree
    for step in path[:-1]:
        inner = branch.entries.get(step)
        if not isinstance(inner, Branch):
            inner = branch.entries[step] = Branch(where)
        branch = inner
    old = branch.entries.get(path[-1])
    if isinstance(value, Branch) and isinstance(old, Branch) and len(path) == 1:
        if path[0] not in plugins.PACKAGES:
            old.entries.update(value.entries)  # a section: the keys that are named
            return
    branch.entries[path[-1]] = value


def _plugin_path(tree: Branch, path: list[str]) -> list[str]:
    """Where an override of a seam writes: [seam], or [seam, plug-in, option...]."""
    seam, rest = path[0], path[1:]
    if not rest:
        return path
    entry = tree.entries.get(seam)
    name: str = getattr(_default(Config, seam), "name", "")
    if isinstance(entry, Leaf) and isinstance(entry.value, str):
        name = entry.value
    elif isinstance(entry, Branch) and len(entry.entries) == 1:
        [name] = entry.entries
    colon = next((i for i, part in enumerate(rest) if ":" in part), None)
    if colon is not None:  # package.module:Class.option
        rest = [".".join(rest[: colon + 1]), *rest[colon + 1 :]]
    elif len(rest) == 1:
        rest = [name, *rest]
    if rest[0] != name or not isinstance(entry, Branch):
        where = entry.where if entry is not None else tree.where
        tree.entries[seam] = Branch(where, {rest[0]: Branch(where)})
    return [seam, *rest]


# --- resolving ---------------------------------------------------------------------------------


class _Resolver:
    """One pass over a tree; `places` remembers where each key was given."""

    def __init__(self, tree: Branch, path: Path, problems: list[str]) -> None:
        self._tree = tree
        self._path = path
        self._problems = problems
        self._places: dict[str, str] = {}

    def config(self) -> Config:
        """What does not fit is reported and stands at its default, so that all is checked."""
        values = self._fields(Config, self._tree, "")
        for seam in plugins.PACKAGES:
            values[seam] = self._plugin(seam, values[seam], values["group"].size)
        if "model" not in values:
            if "model" not in self._places:
                self._problem("model", "missing: the directory of a Hugging Face causal LM")
            values["model"] = ""
        config = Config(**values)
        for key, problem in configrules.problems(config):
            self._problem(key, problem)
        return self._with_paths(config)

    def _problem(self, key: str, text: str, where: str | None = None) -> None:
        place = where or self._places.get(key) or str(self._path)
        self._problems.append(f"{place}: {key}: {text}")

    def _fields(self, struct: type[Section], branch: Branch, prefix: str) -> dict[str, Any]:
        """Values of a section's fields; those that do not fit are left out or at their default."""
        known = {item.name: item for item in msgspec.structs.fields(struct)}
        for key, entry in branch.entries.items():
            if key not in known:
                hint = _near_key(f"{prefix}{key}", known)
                self._problem(f"{prefix}{key}", f"unknown key{hint}", entry.where)
        values: dict[str, Any] = {}
        for name, item in known.items():
            key, entry = f"{prefix}{name}", branch.entries.get(name)
            if entry is not None:
                self._places[key] = entry.where
            if struct is Config and name in plugins.PACKAGES:
                values[name] = entry if entry is not None else _default(Config, name)
            elif struct is Config and name in _sections():
                if isinstance(entry, Leaf) and entry.value is not None:
                    self._problem(key, f"found {_shown(entry)}, expected the keys of a section")
                inner = entry if isinstance(entry, Branch) else Branch(str(self._path))
                values[name] = _sections()[name](**self._fields(item.type, inner, f"{key}."))
            elif entry is not None:
                try:
                    values[name] = _converted(entry, item.type)
                except ValueError as error:
                    self._problem(key, str(error))
        return values

    def _plugin(self, seam: str, given: Tree | Plugin, group_size: int) -> Plugin:
        options: Branch | None = None
        if isinstance(given, Plugin):
            name = given.name
        elif isinstance(given, Leaf) and isinstance(given.value, str):
            name = given.value
        elif isinstance(given, Branch) and len(given.entries) == 1:
            [(name, inner)] = given.entries.items()
            options = inner if isinstance(inner, Branch) else None
            if isinstance(inner, Leaf) and inner.value is not None:
                self._problem(
                    seam, f"found {_shown(inner)} for {name}, expected its options, "
                    f"as in {seam}: {{{name}: {{option: value}}}}"
                )  # fmt: skip
                return _default(Config, seam)
        else:
            found = f"{len(given.entries)} names" if isinstance(given, Branch) else _shown(given)
            self._problem(
                seam, f"found {found}, expected a name, or one name with its options, "
                f"as in {seam}: {{name: {{option: value}}}}"
            )  # fmt: skip
            return _default(Config, seam)
        try:
            struct = plugins.options_type(plugins.find(seam, name))
        except plugins.PluginError as error:
            self._problem(seam, str(error))
            return _default(Config, seam)
        return self._options(f"{seam}.{name}", name, struct, options, seam, group_size)

    def _options(
        self, key: str, name: str, struct: type[plugins.Options], given: Branch | None,
        seam: str, group_size: int,
    ) -> Plugin:  # fmt: skip
        before = len(self._problems)
        known = {item.name: item for item in msgspec.structs.fields(struct)}
        values: dict[str, Any] = {}
        for option, entry in (given.entries if given else {}).items():
            if option not in known:
                hint = _did_you_mean(option, known) or (
                    f"; options: {', '.join(known)}" if known else f"; {name} has none"
                )
                self._problem(f"{key}.{option}", f"unknown option{hint}", entry.where)
                continue
            self._places[f"{key}.{option}"] = entry.where
            try:
                values[option] = _converted(entry, known[option].type)
            except ValueError as error:
                self._problem(f"{key}.{option}", str(error))
        for option, item in known.items():
            if item.required and option not in values and len(self._problems) == before:
                self._problem(key, f"needs the option {option}")
        if len(self._problems) > before:
            return Plugin(name=name)
        options = struct(**values)
        for text in options.problems(group_size):
            about = f"{key}.{text.split(' ', 1)[0]}"
            places = (about, seam, "group.size")
            where = next((self._places[place] for place in places if place in self._places), None)
            self._problem(key, text, where)
        return Plugin(name=name, options=msgspec.to_builtins(options))

    def _with_paths(self, config: Config) -> Config:
        model = config.model
        if model:
            model = self._found("model", model, "no such directory", Path.is_dir)
        if model and not (Path(model) / "config.json").is_file():
            self._problem("model", f"{model} holds no config.json: not a Hugging Face model")
        changed: dict[str, Any] = {}
        if config.data.train not in configrules.tasks():
            known = ", ".join(configrules.tasks())
            rule = f"neither a task of the house ({known}) nor a file"
            changed["train"] = self._found("data.train", config.data.train, rule)
        if isinstance(config.data.held_out, str):
            changed["held_out"] = self._found("data.held_out", config.data.held_out, "no such file")
        data = msgspec.structs.replace(config.data, **changed)
        learner = config.learner
        if learner.reference not in ("", "start"):
            rule = "neither start nor a directory"
            found = self._found("learner.reference", learner.reference, rule, Path.is_dir)
            learner = msgspec.structs.replace(learner, reference=found)
        return msgspec.structs.replace(config, model=model, data=data, learner=learner)

    def _found(
        self, key: str, given: str, rule: str, fits: Callable[[Path], bool] = Path.is_file
    ) -> str:
        """Absolute path of something in the current directory, or beside the file's; '': none."""
        found, why = look_for(given, [Path.cwd(), self._path.resolve().parent.parent], fits)
        if not found:
            near = difflib.get_close_matches(given, configrules.tasks(), n=1)
            hint = f"; did you mean {near[0]}?" if near and key == "data.train" else ""
            self._problem(key, f"found {given!r:.500}: {rule}; {why:.500}{hint}")
        return found


def _sections() -> dict[str, type[Section]]:
    return {
        item.name: item.type
        for item in msgspec.structs.fields(Config)
        if isinstance(item.type, type) and issubclass(item.type, Section)
    }


def _default(struct: type[Any], name: str) -> Any:
    [item] = [item for item in msgspec.structs.fields(struct) if item.name == name]
    return item.default_factory() if item.default is msgspec.NODEFAULT else item.default


_NAMES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    str | int: "text or a whole number",
    tuple[float, float]: "a list of two numbers",
}


def _converted(entry: Tree, type_: Any) -> Any:
    """The value as the field's type. Raises ValueError with what was found and expected."""
    value = plain(entry)
    if type_ is str and isinstance(entry, Leaf) and isinstance(value, int | float):
        value = entry.text  # cpu_cores: 0 means "0"
    try:
        converted = msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        if get_origin(type_) is Literal:
            choices = [str(choice) for choice in get_args(type_)]
            rule = f"expected one of {', '.join(choices)}{_did_you_mean(str(value), choices)}"
        else:
            rule = f"expected {_NAMES[type_]}" if type_ in _NAMES else str(error)
        raise ValueError(f"found {_shown(entry)}, {rule}") from None
    numbers: tuple[object, ...] = converted if isinstance(converted, tuple) else (converted,)
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise ValueError(f"found {_shown(entry)}, expected a finite number")
    return converted


def _shown(entry: Tree) -> str:
    text = "nothing" if plain(entry) is None else repr(plain(entry))
    return text if len(text) <= 60 else text[:57] + "..."


def _did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _near_key(key: str, siblings: Collection[str]) -> str:
    """A hint: the nearest sibling, else the nearest key anywhere."""
    prefix, _, last = key.rpartition(".")
    every = list(documentation())
    same = [known for known in every if known.rsplit(".", 1)[-1] == last]
    return (
        _did_you_mean(last, [*siblings], f"{prefix}." if prefix else "")
        or (f"; did you mean {same[0]}?" if same else "")
        or _did_you_mean(key, () if prefix and siblings else [*every, *_sections()])
    )


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would be read as something else by the rules of `scalar`."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)
