"""The Structs of settings -> what each key means and which Struct holds it.

A dotted key names a setting: `step.prompts`; `learner.lora.rank` of a section that
may be absent; `data.train.*.weight` of a section in a list or under a name. Reads
the docstrings below the fields from the source, so that a meaning is written once.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterator
from typing import Any, get_args, get_origin

import msgspec

from pipeline.config import other_names
from pipeline.config.schema import Config
from pipeline.config.setting_types import Section
from pipeline.plugins.ranges import choices, did_you_mean, rule_of


def documentation() -> dict[str, str]:
    """Dotted key -> what its docstring in `pipeline.config.schema` says, in the file's order."""
    return dict(_documented("", Config))


def _documented(prefix: str, struct: type[Any]) -> Iterator[tuple[str, str]]:
    texts = option_documentation(struct)
    for item in msgspec.structs.fields(struct):
        key = f"{prefix}{item.name}"
        if not is_section(item.type):
            yield key, texts[item.name]
        for place, section in sections_in(item.type):
            yield from _documented(f"{key}{place}.", section)


def sections(prefix: str = "", struct: type[Any] = Config) -> dict[str, type[Section]]:
    """Dotted name -> Struct of every section, also of those within another."""
    found: dict[str, type[Section]] = {}
    for item in msgspec.structs.fields(struct):
        for place, section in sections_in(item.type):
            name = f"{prefix}{item.name}{place}"
            found |= {name: section, **sections(f"{name}.", section)}
    return found


def is_section(type_: object) -> bool:
    """Whether a field of this type is always a section."""
    return isinstance(type_, type) and issubclass(type_, Section)


def sections_in(type_: Any) -> Iterator[tuple[str, type[Section]]]:
    """Sections that a field of this type may hold, and where below its key: "" or ".*"."""
    if is_section(type_):
        yield "", type_
    place = ".*" if get_origin(type_) in (tuple, list, dict) else ""
    for inner in get_args(type_):
        yield from ((f"{place}{below}", section) for below, section in sections_in(inner))


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


def in_full(meaning: str, type_: Any) -> str:
    """A setting's meaning on one line, with its range or its choices if it does not say them."""
    text, words, rule = " ".join(meaning.split()), choices(type_), rule_of(type_)
    if all(word in text for word in words) if words else rule.split(",")[0] in text:
        return text
    more = f"One of {', '.join(f'`{w}`' for w in words)}." if words else f"Allowed: {rule}."
    return f"{text}{'' if text.endswith(('.', '.)')) else '.'} {more}"


def default_of(struct: type[Any], name: str) -> Any:
    """The default of a field; `msgspec.NODEFAULT` if it has none."""
    [item] = [item for item in msgspec.structs.fields(struct) if item.name == name]
    if item.default_factory is not msgspec.NODEFAULT:
        return item.default_factory()
    return item.default


def type_of(struct: type[Any], name: str) -> Any:
    """The type of a field, with its range."""
    [item] = [item for item in msgspec.structs.fields(struct) if item.name == name]
    return item.type


def near_key(key: str, siblings: Collection[str], value: object = "") -> str:
    """A hint: what other libraries' name for it is here, the nearest sibling, or the nearest key
    anywhere.

    Args:
        value: what was written for it.
    """
    if said := other_names.ours(key, value):
        return f"; {said}"
    prefix, _, last = key.rpartition(".")
    every = list(documentation())
    same = [known for known in every if known.rsplit(".", 1)[-1] == last]
    return (
        did_you_mean(last, [*siblings], f"{prefix}." if prefix else "")
        or (f"; did you mean {same[0]}?" if same else "")
        or did_you_mean(key, () if prefix and siblings else [*every, *sections()])
    )
