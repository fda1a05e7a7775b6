"""Checks what the methods of a plug-in take, before anything starts.

Turns a kind and a class into complaints that name the method and what it should take. Calls
nothing: a signature that Python cannot tell (of a compiled function) passes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    "prompt_order": {"plan": ("view",)},
    "budget": {"allocate": ("prompts", "view"), "top_up": ("groups", "idle")},
    "selector": {"decide": ("group", "event")},
    "batch": {"decide": ("view",)},
    "environment": {"turn": ("turn",)},
    "reward": {"score": ("sample",)},
    "advantage": {"advantages": ("members",)},
    "loss": {"loss": ("batch",)},
}
"""kind -> method -> what it is called with."""
OPTIONAL: dict[str, dict[str, tuple[str, ...]]] = {
    "prompt_order": {"ended": ("group",)},
    "budget": {"ended": ("group",), "metrics": ()},
    "selector": {"ended": ("group",), "waits_for": ("candidates", "size")},
    "batch": {"ended": ("group",)},
    "environment": {},
    "reward": {
        "score_all": ("samples",),
        "score_group": ("samples",),
        "complaint": ("sample",),
    },
    "advantage": {"ended": ("group",), "of_step": ("groups",)},
    "loss": {"step_scale": ("sums",)},
}
"""The same of methods that a plug-in may leave out."""
_STATE = {"state": (), "restore": ("state",)}
_SEEDED = ("prompt_order",)
"""Kinds whose constructor is given `seed=` beside the options."""


def signature_problems(kind: str, cls: type[Any]) -> Iterator[str]:
    """Complaints about methods that are missing or take other arguments, a line each."""
    for name, parameters in NEEDED[kind].items():
        if not callable(getattr(cls, name, None)):
            yield f"{cls.__qualname__} has no method {_written(name, parameters)}"
        else:
            yield from _misfit(cls, name, parameters)
    for name, parameters in (OPTIONAL[kind] | _STATE).items():
        if callable(getattr(cls, name, None)):
            yield from _misfit(cls, name, parameters)
    if hasattr(cls, "state") != hasattr(cls, "restore"):
        yield f"{cls.__qualname__} must offer both state() and restore(), or neither"
    yield from _constructor(kind, cls)


def _misfit(cls: type[Any], name: str, parameters: tuple[str, ...]) -> Iterator[str]:
    static = inspect.getattr_static(cls, name)
    bound = isinstance(static, staticmethod | classmethod)
    try:
        signature = inspect.signature(getattr(cls, name))
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*([] if bound else [None]), *parameters)
    except TypeError as error:
        yield (
            f"{cls.__qualname__}.{name}{signature}: it is called as "
            f"{_written(name, parameters)} ({error})"
        )


def _constructor(kind: str, cls: type[Any]) -> Iterator[str]:
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return
    seed: dict[str, int] = {"seed": 0} if kind in _SEEDED else {}
    try:
        signature.bind(None, **seed)
    except TypeError as error:
        more = ", *, seed" if seed else ""
        cure = "" if seed else "; without options of its own it may inherit Stateless"
        yield (
            f"{cls.__qualname__}{signature}: it is constructed as "
            f"__init__(self, options{more}) ({error}){cure}"
        )


def _written(name: str, parameters: tuple[str, ...]) -> str:
    return f"{name}({', '.join(('self', *parameters))})"
