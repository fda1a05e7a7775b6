"""A tree of what was written -> values of a setting's type, or complaints with their place.

A type may be a scalar, a list or dictionary of plain values, a section, a section
that may be absent (`Lora | None`), a list of sections (`tuple[Source, ...]`), names
with sections or values (`dict[str, str]`), or a choice of these (`str | dict[...]`).
Invariant: what does not fit is reported once, with the innermost key, and left out,
so that everything else is checked in the same go. Must not know what a setting does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin

import msgspec

from pipeline.config.docs import is_section, near_key, sections_in
from pipeline.config.setting_types import Section
from pipeline.config.yaml_tree import Branch, Leaf, Series, Tree, plain
from pipeline.plugins.ranges import bare, broken

_NAMES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple[float, float]: "a list of two numbers",
    NoneType: "null",
}


class Misfit(ValueError):
    """A value is not of its type, or out of range; says what was found and expected."""


class Values:
    """Reads entries of a tree; remembers where each key was given.

    Args:
        problem: told of each complaint: key, text, place ("": that of the key).
    """

    def __init__(self, problem: Callable[[str, str, str], None]) -> None:
        self._problem = problem
        self._places: dict[str, str] = {}

    def place(self, key: str) -> str:
        """Where the key, or the nearest one that holds it, was given; "" if nowhere."""
        while key and key not in self._places:
            key = key.rpartition(".")[0]
        return self._places.get(key, "")

    def given(self, key: str) -> bool:
        return key in self._places

    def note(self, key: str, where: str) -> None:
        self._places[key] = where

    def fields(
        self, struct: type[Section], branch: Branch, prefix: str, leave: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Values of a section's fields; those that do not fit, and those to leave, are left out."""
        known = {item.name: item for item in msgspec.structs.fields(struct)}
        for key, entry in branch.entries.items():
            if key not in known:
                value = entry.value if isinstance(entry, Leaf) else ""
                hint = near_key(f"{prefix}{key}", known, value)
                self._problem(f"{prefix}{key}", f"unknown key{hint}", entry.where)
        values: dict[str, Any] = {}
        for name, item in known.items():
            entry = branch.entries.get(name)
            if entry is None:
                continue
            self.note(f"{prefix}{name}", entry.where)
            if name not in leave:
                value = self.value(f"{prefix}{name}", entry, item.type)
                if value is not msgspec.UNSET:
                    values[name] = value
        return values

    def value(self, key: str, entry: Tree, type_: Any) -> Any:
        """The entry as the type; UNSET if it, or something in it, has been reported."""
        self.note(key, entry.where)
        for kind in _kinds(bare(type_)):
            if is_section(kind) and (isinstance(entry, Branch) or _empty(entry, type_)):
                return self._section(key, entry, kind)
            origin, inner = get_origin(kind), _held(kind)
            if isinstance(entry, Branch) and origin is dict and inner is not Any:
                return self._all(key, entry, inner)
            if isinstance(entry, Series) and origin in (tuple, list) and any(sections_in(kind)):
                found = self._all(key, entry, inner)
                return found if found is msgspec.UNSET else tuple(found.values())
        try:
            return converted(entry, type_)
        except Misfit as error:
            self._problem(key, str(error), "")
            return msgspec.UNSET

    def _section(self, key: str, entry: Tree, struct: type[Section]) -> Any:
        branch = entry if isinstance(entry, Branch) else Branch(entry.where)
        values = self.fields(struct, branch, f"{key}.")
        needed = [item.name for item in msgspec.structs.fields(struct) if item.required]
        for name in needed:
            if name not in branch.entries:
                self._problem(key, f"needs the key {name}", entry.where)
        return struct(**values) if set(needed) <= set(values) else msgspec.UNSET

    def _all(self, key: str, entry: Branch | Series, type_: Any) -> Any:
        found = {
            name: self.value(f"{key}.{name}", inner, type_) for name, inner in entry.entries.items()
        }
        return msgspec.UNSET if msgspec.UNSET in found.values() else found


def _kinds(type_: Any) -> tuple[Any, ...]:
    return get_args(type_) if get_origin(type_) in (Union, UnionType) else (type_,)


def _held(kind: Any) -> Any:
    """Type of the values of a dictionary or a list."""
    return next((arg for arg in reversed(get_args(kind)) if arg is not Ellipsis), Any)


def _empty(entry: Tree, type_: Any) -> bool:
    """`step:` with nothing behind it: all keys have their defaults, unless null means absent."""
    absent = isinstance(entry, Leaf) and entry.value is None
    return absent and NoneType not in _kinds(type_)


def converted(entry: Tree, type_: Any) -> Any:
    """The value as a field's type. Raises Misfit with what was found and expected."""
    value, kinds = plain(entry), _kinds(bare(type_))
    if str in kinds and isinstance(entry, Leaf) and isinstance(value, int | float):
        if not {int, float, bool} & set(kinds):
            value = entry.text  # cpu_cores: 0 means "0"
    try:
        if not isinstance(entry, Leaf) and any(is_section(kind) for kind in kinds):
            raise msgspec.ValidationError("a section that does not fit is told by its keys")
        rule = broken(value, type_)
    except msgspec.ValidationError as error:
        raise Misfit(f"found {shown(entry)}, {_rule(kinds, str(error))}") from None
    if rule:
        raise Misfit(f"found {shown(entry)}, {rule}")
    found = msgspec.convert(value, type_)
    if not _finite(found):
        raise Misfit(f"found {shown(entry)}, expected a finite number")
    return found


def _rule(kinds: tuple[Any, ...], otherwise: str) -> str:
    names = [_named(kind) for kind in kinds]
    return f"expected {' or '.join(names)}" if all(names) else otherwise


def _named(kind: Any) -> str:
    """A type in the user's words; "" for one that has none."""
    held = [section for _, section in sections_in(kind)]
    keys = f"({', '.join(held[0].__struct_fields__)})" if held else ""
    if get_origin(kind) is dict:
        return f"names with the keys of a section each {keys}" if held else "names with values"
    if held and get_origin(kind) in (tuple, list):
        return f"a list of sections {keys}"
    if get_origin(kind) in (tuple, list) and kind not in _NAMES:
        names = [_named(each) for each in _kinds(_held(kind))]
        return f"a list, of {' or '.join(names)} each" if all(names) else ""
    return "the keys of a section" if held else _NAMES.get(kind, "")


def _finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(_finite(inner) for inner in cast(dict[str, Any], value).values())
    if isinstance(value, list | tuple):
        return all(_finite(inner) for inner in cast(list[Any], value))
    return not isinstance(value, float) or math.isfinite(value)


def shown(entry: Tree) -> str:
    """A value as a message shows it."""
    text = "nothing" if plain(entry) is None else repr(plain(entry))
    return text if len(text) <= 60 else text[:57] + "..."
