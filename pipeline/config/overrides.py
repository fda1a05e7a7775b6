"""`key=value` of a command line -> the same tree as if the file had said so.

`step.prompts=32`, `selector=dual_end` (its options at their defaults),
`selector.dual_end.longest=2` (chooses `dual_end`), `budget.redundancy=1` (of the
plug-in in force), `data.train.0.weight=2` (of the first in a list). Knows the
names of sections and kinds of plug-ins, and no setting's meaning.
"""

from __future__ import annotations

import msgspec

from pipeline.config.docs import default_of, near_key
from pipeline.config.renamed import SECTIONS
from pipeline.config.schema import Config
from pipeline.config.yaml_tree import HALVES, Branch, Leaf, Series, Tree, parse, scalar
from pipeline.plugins import registry


def apply(tree: Branch, override: str, problems: list[str]) -> None:
    """Write one override into the tree; what is wrong with it is appended, a line each."""
    key, equals, text = override.partition("=")
    where = f"override {override}"
    path = key.strip().split(".")
    if not equals or not all(path):
        problems.append(f"{where}: expected key=value, for instance step.prompts=32")
        return
    if HALVES.search(override):
        shown = ascii(override)[1:-1]
        problems.append(f"override {shown:.200}: is not UTF-8, and no configuration can hold it")
        return
    known = {item.name for item in msgspec.structs.fields(Config)}
    if path[0] not in known | SECTIONS:
        problems.append(f"{where}: {key}: unknown key{near_key(key, (), text)}")
        return
    value: Tree | None = Leaf(where, scalar(text), text)
    if text[:1] in ("[", "{", '"', "'"):
        value = parse(text, lambda _: where, problems)
        if value is None:
            return
    if path[0] in registry.PACKAGES:
        path = _plugin_path(tree, path)
    branch: Branch | Series = tree
    for depth, step in enumerate(path):
        if isinstance(branch, Series) and step not in branch.entries:
            listed = ".".join(path[:depth])
            problems.append(
                f"{where}: {listed}: found {step!r} for a place in a list of "
                f"{len(branch.entries)}, expected a number from 0 to {len(branch.entries) - 1}"
            )
            return
        if depth + 1 < len(path):
            inner = branch.entries.get(step)
            if not isinstance(inner, Branch | Series):
                inner = branch.entries[step] = Branch(where)
            branch = inner
    old = branch.entries.get(path[-1])
    if isinstance(value, Branch) and isinstance(old, Branch) and len(path) == 1:
        if path[0] not in registry.PACKAGES:
            old.entries.update(value.entries)  # a section: the keys that are named
            return
    branch.entries[path[-1]] = value


def _plugin_path(tree: Branch, path: list[str]) -> list[str]:
    """Where an override of a plug-in writes: [kind], or [kind, name, option...]."""
    kind, rest = path[0], path[1:]
    if not rest:
        return path
    entry = tree.entries.get(kind)
    name: str = getattr(default_of(Config, kind), "name", "")
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
        tree.entries[kind] = Branch(where, {rest[0]: Branch(where)})
    return [kind, *rest]
