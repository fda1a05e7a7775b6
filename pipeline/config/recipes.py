"""Recipes: a published method as a few settings, by name or as a file.

Turns a file's settings, the recipes that are named, and a command line into one tree, in
which every value still knows where it was written. A recipe lies beneath the settings of a
file that names it (`recipe: dars`), and over the file where a command line names it
(`recipe=dars`); other overrides win over both. It holds settings as any file does, and its
first lines of comment say what it is (`About`). Knows no setting's meaning.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from pipeline.config import shipped
from pipeline.config.paths import bases_of, look_for
from pipeline.config.values import shown
from pipeline.config.yaml_tree import MAX_CHARACTERS, Branch, Leaf, Tree, parse, plain, write
from pipeline.plugins import registry
from pipeline.plugins.ranges import did_you_mean

FOLDER = shipped.ROOT / "configs" / "recipes"
"""Where the built-in recipes lie."""
ENTRY_POINTS = "darts.recipes"
"""Entry point group of installed recipes: a dict of settings, or the path of a YAML file beside
the module."""


# --- names ----------------------------------------------------------------------------------


def builtin_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """Recipes of installed packages by name, read from metadata only."""
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def names_in(text: str) -> list[str]:
    """`dars, gspo` -> the recipes of a setting; later ones win."""
    return [name for name in map(str.strip, text.split(",")) if name]


# --- layers ---------------------------------------------------------------------------------


def laid(
    tree: Branch, overrides: Iterable[str], file: Path | None, problems: list[str]
) -> tuple[Branch, list[str]]:
    """Lays recipes beneath and over a file's settings.

    Args:
        tree: the file's settings.
        overrides: `key=value` each; those of the key `recipe` are carried out here.
        file: the configuration's own, for paths beside it.
        problems: what is wrong is appended here, a line each.

    Returns: the settings, without the key `recipe` but for the names of all that were laid, and
        the other overrides.
    """
    named: list[str] = []

    def layer(below: Branch, text: str, where: str) -> Branch:
        for name in names_in(text):
            found = _read(name, where, file, problems)
            if found is not None:
                below = merged(below, found)
                named.append(name)
        return below

    own = tree.entries.pop("recipe", None)
    if own is not None:
        value = plain(own)
        words = cast(list[Any], value if isinstance(value, list) else [value or ""])
        if all(isinstance(word, str) for word in words):
            tree = merged(layer(Branch(tree.where), ",".join(words), own.where), tree)
        else:
            rule = "expected names of recipes, or files, with commas between"
            problems.append(f"{own.where}: recipe: found {shown(own)}, {rule}")
    others: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if key.strip() == "recipe" and equals:
            tree = layer(tree, re.sub(r"[\[\]\"']", "", text), f"override {override}")
        else:
            others.append(override)
    if named:
        tree.entries["recipe"] = Leaf(tree.where, ",".join(named), ",".join(named))
    return tree, others


def merged(lower: Branch, upper: Branch) -> Branch:
    """Settings over others: single keys of a section, single options of the same plug-in; another
    plug-in takes the place of the lower one and its options, and so does a bare name."""
    entries = dict(lower.entries)
    for key, entry in upper.entries.items():
        below = entries.get(key)
        if not isinstance(below, Branch) or not isinstance(entry, Branch):
            entries[key] = entry
        elif key not in registry.PACKAGES:
            entries[key] = Branch(entry.where, {**below.entries, **entry.entries})
        elif list(below.entries) == list(entry.entries):
            entries[key] = merged(below, entry)  # the same name: its options
        else:
            entries[key] = entry
    return Branch(upper.where, entries)


# --- files ----------------------------------------------------------------------------------


def read_settings(path: Path, name: str, problems: list[str]) -> Branch:
    """A YAML file as a tree; an empty one if it cannot be read, which has been said.

    Args:
        name: the file as problems show it.
    """
    empty = Branch(name)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        cure = "expected a YAML file in UTF-8; mend the path, or save it as one"
        problems.append(f"{name}: cannot be read: {why}; {cure}")
        return empty
    before = len(problems)
    tree = parse(text, lambda line: f"{name}:{line}", problems)
    if isinstance(tree, Branch):
        return tree
    if tree is not None and len(problems) == before:
        problems.append(f"{name}:1: found {shown(tree)}, expected lines of `key: value`")
    return empty


def _read(name: str, where: str, file: Path | None, problems: list[str]) -> Branch | None:
    """The settings of one recipe; None if there is no such recipe, which has been said."""
    path, why = _path_of(name, file)
    if path is not None:
        found = read_settings(path, _as_shown(path), problems)
    elif why:
        problems.append(f"{where}: recipe: {why}")
        return None
    else:
        try:
            found = _installed_settings(name, problems)
        except Exception as error:  # whatever somebody else's module does when imported
            point = installed()[name].value
            what = f"{type(error).__name__}: {error}"
            problems.append(f"{where}: recipe: {name} ({point}): {what}")
            return None
    if (own := found.entries.pop("recipe", None)) is not None:
        problems.append(f"{own.where}: recipe: a recipe names no other; name both: recipe=a,b")
    return found


def _path_of(name: str, file: Path | None) -> tuple[Path | None, str]:
    """(file of a recipe, ""), (None, "") for one of an installed package, or (None, why not)."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        bases = bases_of(file)
        found, why = look_for(name, bases, Path.is_file)
        return (Path(found), "") if found else (None, f"found {name!r:.500}: no such file; {why}")
    known = builtin_names()
    if name in known:
        return FOLDER / f"{name}.yaml", ""
    others = list(installed())
    if name in others:
        return None, ""
    hint = did_you_mean(name, [*known, *others])
    cure = "darts config recipes lists them; a file of yours has a / or ends in .yaml"
    return None, f"found {name!r:.500}: no such recipe{hint}; {cure}"


def _as_shown(path: Path) -> str:
    here = Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)


def _installed_settings(name: str, problems: list[str]) -> Branch:
    point = installed()[name]
    value: Any = point.load()
    if isinstance(value, Mapping):
        settings = cast(Mapping[str, Any], value)
        tree: Tree | None = parse(write(settings), lambda _: f"recipe {name}", problems)
        return tree if isinstance(tree, Branch) else Branch(f"recipe {name}")
    if not isinstance(value, str | Path):
        raise TypeError(f"found {value!r:.60}, expected a dict of settings, or a path")
    beside = Path(str(importlib.import_module(point.module).__file__)).parent
    path = beside / value
    return read_settings(path, _as_shown(path), problems)


# --- what a recipe says of itself -----------------------------------------------------------

ACTS_ON = {
    "prompts": "which prompts come next, and when",
    "budget": "how many candidates a prompt gets, and how long they may be",
    "placement": "which response gets an engine's slot, and when",
    "stop": "when sampling ends: of a response, of a group, of a step",
    "select": "which candidates and groups are trained on",
    "learn": "advantages, loss and optimizer",
    "replay": "what is continued or trained on in later steps",
}
"""What a method may act on, in the order of the tables."""
_LINE = re.compile(r"(?P<key>Acts on|Exact|Ours): (?P<text>.+)")
_TITLE = re.compile(r"(?P<title>.+?) \((?P<source>[^()]*(?:\([^()]*\)[^()]*)*)\): (?P<sentence>.+)")


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The comment at the head of a recipe:

    # Title (source): one sentence.
    # Acts on: budget, select
    # Exact: what is as published
    # Ours: our reading
    """

    name: str
    title: str
    source: str
    sentence: str
    acts_on: tuple[str, ...]
    exact: str
    ours: str


def about(path: Path) -> About:
    """What a recipe's file says of itself; what it does not say is empty."""
    said: dict[str, list[str]] = {"": []}
    key = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        found = _LINE.fullmatch(line[2:])
        if found:
            key = found["key"]
            said[key] = [found["text"]]
        else:
            said[key].append(line[2:].strip())
    words = {key: " ".join(lines) for key, lines in said.items()}
    head = _TITLE.fullmatch(words[""])
    return About(
        name=path.stem,
        title=head["title"] if head else path.stem,
        source=head["source"] if head else "",
        sentence=head["sentence"] if head else words[""],
        acts_on=tuple(word.strip() for word in words.get("Acts on", "").split(",") if word),
        exact=words.get("Exact", ""),
        ours=words.get("Ours", ""),
    )


def builtin_recipes() -> list[About]:
    """All built-in recipes, by name."""
    return [about(FOLDER / f"{name}.yaml") for name in builtin_names()]


def recipe_path(name: str) -> Path | None:
    """The file of a recipe, by name or path; None: an installed package holds it, or nobody."""
    return _path_of(name, None)[0]
