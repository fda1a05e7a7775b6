"""Functions that were typed in -> a file that another process can import.

Written are the functions' source, and what of their globals they use: modules and what comes from
modules as imports, plain values (numbers, text, patterns, lists, dicts) as they are now, and other
functions that were typed in. Anything else is refused by its name.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

_LITERALS = (bool, int, float, complex, str, bytes, type(None), list, tuple, set, dict)


class NotWritable(Exception):
    """A function cannot be written into a file; the message begins with its name."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} {why}")
        self.name = name


def write_functions(functions: Sequence[Callable[..., Any]], path: Path) -> None:
    """Writes functions, and what they use, as a module. Raises NotWritable; nothing is written
    then."""
    parts = _Parts()
    for function in functions:
        parts.add(function)
    text = "\n\n".join(
        [
            '"""Functions that were typed in, and what they use, as darts.train found them."""',
            "from __future__ import annotations",
            "\n".join(parts.first),
            *parts.functions.values(),
        ]
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


class _Parts:
    """The lines of the module so far."""

    def __init__(self) -> None:
        self.first: dict[str, None] = {}  # imports and values, in order
        self.functions: dict[str, str] = {}  # name -> source

    def add(self, function: Callable[..., Any]) -> None:
        plain: Any = inspect.unwrap(function)
        name = plain.__name__
        if name in self.functions:
            return
        try:
            source = textwrap.dedent(inspect.getsource(plain))
        except (OSError, TypeError) as error:
            why = "was typed in and is in no file, and Python has not kept its source"
            raise NotWritable(name, why) from error
        self.functions[name] = ""  # it may call itself; filled below, behind what it uses
        for used in _names(source):
            if used in plain.__globals__ and used != name:
                self._use(name, used, plain.__globals__[used])
        del self.functions[name]
        self.functions[name] = source.rstrip()

    def _use(self, function: str, name: str, value: Any) -> None:
        module = getattr(value, "__module__", None)
        if isinstance(value, ModuleType):
            self.first[f"import {value.__name__} as {name}"] = None
        elif module and module not in ("__main__", "builtins") and hasattr(value, "__qualname__"):
            self.first[f"from {module} import {value.__qualname__} as {name}"] = None
        elif inspect.isfunction(value):
            if value.__name__ != name:
                raise NotWritable(function, f"uses {name}, another name of {value.__name__}")
            self.add(value)
        elif _is_literal(value):
            self.first[f"{name} = {value!r}"] = None
        elif isinstance(value, re.Pattern):
            found = cast("re.Pattern[Any]", value)
            self.first[f"{name} = __import__('re').compile({found.pattern!r}, {found.flags})"] = (
                None
            )
        elif getattr(builtins, name, None) is not value:
            raise NotWritable(
                function,
                f"uses {name}, a {type(value).__name__}, and was typed in: its processes cannot "
                "get at that",
            )


def _names(source: str) -> Iterator[str]:
    """Yields the names that the source reads, but for annotations, which nobody evaluates."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    yield from dict.fromkeys(node.id for node in found if isinstance(node.ctx, ast.Load))


def _is_literal(value: Any) -> bool:
    """Returns True if its text is the value itself: numbers, text, None, and lists, tuples, sets
    and dicts of these."""
    if type(value) not in _LITERALS:
        return False
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):  # something in it is none
        return False
