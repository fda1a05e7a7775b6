"""Types of settings and options that carry their range, and what a value breaks.

A field says `count: PositiveInt = 1`, or `Literal["stop", "skip"]`; its range is checked where a
configuration is loaded, stands in docs/configuration.md and in the JSON Schema. A `description`
of the `Meta` is the rule in words, where the numbers alone do not say it.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
AtLeastOne = Annotated[float, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
PositiveShare = Annotated[float, Meta(gt=0, le=1)]
NonEmpty = Annotated[str, Meta(min_length=1)]


def zero_or(low: float, high: float | None = None, zero: str = "") -> Meta:
    """0, or at least `low` (and at most `high`); `zero` says what 0 means."""
    bounds = {"minimum": low} | ({} if high is None else {"maximum": high})
    rule = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
    return Meta(
        description=f"{rule}, or 0{zero and f' for {zero}'}",
        extra={"zero_or": (low, high)},
        extra_json_schema={"anyOf": [{"const": 0}, bounds]},
    )


def bare(type_: Any) -> Any:
    """The type without its ranges, also within lists and choices of types."""
    origin, args = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return bare(args[0])
    if origin is Literal or not args:
        return type_
    inner = tuple(arg if arg is Ellipsis else bare(arg) for arg in args)
    return Union[inner] if origin in (Union, UnionType) else origin[inner]  # noqa: UP007


def choices(type_: Any) -> tuple[str, ...]:
    """The words that a Literal allows; () for other types."""
    found = get_args(bare(type_)) if get_origin(bare(type_)) is Literal else ()
    return tuple(map(str, found))


def rule_of(type_: Any) -> str:
    """The range in words: "at least 1"; "" if there is none.

    >>> rule_of(PositiveInt), rule_of(tuple[PositiveInt, ...]), rule_of(str | NonNegativeInt)
    ('at least 1', 'each at least 1', 'at least 0')
    """
    origin, args = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return next((rule for meta in args[1:] if (rule := _rule(meta))), rule_of(args[0]))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    rules = list(dict.fromkeys(rule for arg in args if (rule := rule_of(arg))))
    each = "each " if origin in (tuple, list, dict) else ""
    return each + " or ".join(rules) if rules else ""


def _rule(meta: Meta) -> str:
    if meta.description:
        return meta.description
    if meta.ge is not None and meta.le is not None:
        return f"from {meta.ge} to {meta.le}"
    if meta.ge is not None and meta.lt is not None:
        return f"from {meta.ge} to below {meta.lt}"
    limits = {"at least": meta.ge, "above": meta.gt, "at most": meta.le, "below": meta.lt}
    bounds = [f"{words} {bound}" for words, bound in limits.items() if bound is not None]
    return " and ".join(bounds) or ("not empty" if meta.min_length else "")


def broken(value: object, type_: Any) -> str:
    """The rule that a value of the right type breaks, with the nearest choice; "" if none.

    Raises msgspec.ValidationError if the value does not have the type at all.
    """
    try:
        found = msgspec.convert(value, type_)
    except msgspec.ValidationError:
        if words := choices(type_):
            return f"expected {rule_of(type_)}{did_you_mean(str(value), words)}"
        msgspec.convert(value, bare(type_))
        return f"expected {rule_of(type_)}"
    metas = [meta for meta in get_args(type_)[1:] if isinstance(meta, Meta)]
    for low, high in (meta.extra["zero_or"] for meta in metas if meta.extra):
        if found != 0 and not low <= found <= (found if high is None else high):
            return f"expected {rule_of(type_)}"
    return ""


def did_you_mean(word: str, known: Collection[str], prefix: str = "") -> str:
    """The text `; did you mean X?` with the nearest known word; "" if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
