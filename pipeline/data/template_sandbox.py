"""Jinja's sandbox with limits: a template ends soon and takes little memory, or is refused.

Jinja keeps a template from what is outside of its arguments; it does not keep it from looping for
ever, or from filling the memory. Here every round of a loop and every call of a macro costs a
round, every text that is made costs its characters, and what could make a large text in one go is
estimated before it is done. Must not know messages or models.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    ValuesView,
)
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_ROUNDS = 300_000
"""Rounds of loops, calls and filters of one text: the longest of well-known templates take some
ten for a message. So many take about a second."""
MOST_CHARACTERS = 64 << 20
"""Of all texts that are made for one text."""
_LARGEST = 1000  # base and exponent of a power
_SHRINKS = ("truncate", "int", "float", "round")  # filters whose numbers make nothing longer
_WRITE = frozenset(
    (
        *("tojson", "string", "pprint", "join", "format", "replace", "escape", "e", "forceescape"),
        *("urlencode", "xmlattr", "center", "indent", "wordwrap", "title", "upper", "lower"),
        *("capitalize", "trim", "striptags", "urlize"),
    )
)
"""Filters that write a value, whatever it is, as text."""
_OF_A_VALUE = 64  # characters that anything but a text counts for
_GROWING = ("+", "*", "**", "%")


class Sandbox(ImmutableSandboxedEnvironment):
    """Call `begin` before each text, `bound_filters` once."""

    intercepted_binops = frozenset(_GROWING)  # computed when rendering, not when compiling

    def begin(self) -> None:
        self._rounds, self._characters = 0, 0

    def bound_filters(self, **own: Callable[..., Any]) -> None:
        """Put limits on every filter, those of `own` included; forget what makes texts of any
        length."""
        self.globals.pop("lipsum", None)
        self.filters.update(own)
        for name, found in list(self.filters.items()):
            self.filters[name] = self._bounded(name, found)
        self.begin()

    def count_round(self, characters: int = 0) -> bool:
        """One more round, with so much text of the template's own. Returns True."""
        self._rounds += 1
        if self._rounds > MOST_ROUNDS:
            raise jinja2.TemplateError(f"it takes more than {MOST_ROUNDS} rounds of its loops")
        self._charge(characters)
        return True

    def counted(self, made: Any) -> Any:
        """A value that was made; a text costs its length, a list that of its references."""
        if isinstance(made, str | bytes):
            self._charge(len(made))
        elif isinstance(made, list | tuple):
            self._charge(8 * len(made))
        elif isinstance(made, int) and made.bit_length() > _LARGEST:
            raise jinja2.TemplateError("a number of that size is beyond what is computed")
        return made

    def written(self, value: Any) -> Any:
        """A value that is to be text next: at the cost of all that is in it. A short list may hold
        the same long text a million times, or itself in two places, and so on."""
        self._charge(self._text_size(value))
        return value

    def _text_size(self, value: Any) -> int:
        size, inside = 0, [iter((value,))]
        while inside and size <= MOST_CHARACTERS:
            for one in inside[-1]:
                if isinstance(one, str | bytes):
                    size += len(one)
                    if size > MOST_CHARACTERS:
                        break
                    continue
                size += _OF_A_VALUE
                if isinstance(one, Namespace):
                    one = object.__getattribute__(one, "_Namespace__attrs")
                if isinstance(one, Mapping):
                    inside.append(iter(one.items()))
                    break
                if isinstance(one, _HOLDERS):
                    inside.append(iter(one))
                    break
            else:
                inside.pop()
        return size

    def _charge(self, characters: int) -> None:
        self._characters += characters
        if self._characters > MOST_CHARACTERS:
            raise jinja2.TemplateError(
                f"it is too large: it makes more than {MOST_CHARACTERS} characters"
            )

    # --- Jinja's own ---------------------------------------------------------------------

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Counting().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (_small(left) and _small(right)):
            raise jinja2.TemplateError(f"{left!r:.40} ** {right!r:.40} is beyond what is computed")
        if operator == "*":
            times = [value for value in (left, right) if isinstance(value, int)]
            for value in (left, right):
                if isinstance(value, str | bytes | list | tuple):
                    self._expect(len(value) * max(times, default=1))
        if operator == "%" and isinstance(left, str | bytes):
            self._expect(_width(str(left)))
            self.written(right)
        return self.counted(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if getattr(obj, "__self__", None) is self:  # ours, see _Counting
            return obj(*args)  # without Jinja's own names of variables
        self.count_round()
        method = getattr(obj, "__wrapped__", obj)  # Jinja wraps `str.format`
        own, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        given = [*args, *kwargs.values()]
        if isinstance(own, str | bytes):
            given = self._estimated(name, own, given)
            if name != "join":  # its items are counted one by one
                self.written(given)
            args = tuple(given[: len(args)])
        return self.counted(super().call(context, obj, *args, **kwargs))

    def _bounded(self, name: str, found: Callable[..., Any]) -> Callable[..., Any]:
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.count_round()
            # Some are given a context or an environment first, which is neither text nor number.
            given = [*args, *kwargs.values()]
            first = next((n for n, v in enumerate(given) if _is_value(v)), len(given))
            if first < len(given) and name not in _SHRINKS:
                if name in _WRITE:
                    self.written(given[first])
                rest = self._estimated(name, given[first], given[first + 1 :])
                args = (*args[: first + 1], *rest[: max(0, len(args) - first - 1)])
                if name == "join" and first < len(args):
                    items = self._each(args[first])
                    args = (*args[:first], items, *args[first + 1 :])
            return self.counted(found(*args, **kwargs))

        # Jinja looks at a filter for what it is to be given first.
        bounded.__dict__.update(getattr(found, "__dict__", {}))
        return bounded

    def _estimated(self, name: str, text: Any, given: list[Any]) -> list[Any]:
        """Refuse a call whose result would be too large; the arguments to call it with."""
        length = len(text) if isinstance(text, str | bytes) else 1
        if name == "replace" and isinstance(text, str) and len(given) > 1:
            old, new = str(given[0]), str(given[1])
            self._expect(text.count(old) * len(new))
        elif name == "join" and isinstance(text, str) and given:
            return [self._each(given[0], length), *given[1:]]
        elif name in ("format", "format_map"):
            self._expect(_width(str(text)) * max(1, len(given)))
        numbers = [abs(value) for value in given if isinstance(value, int)]
        if numbers and max(numbers) > 1:
            self._expect(max(1, length) * max(numbers))
        return given

    def _each(self, items: Iterable[Any], more: int = 0) -> Iterator[Any]:
        """The items, each at its cost."""
        for item in items:
            self._charge(more + self._text_size(item))
            yield item

    def _expect(self, characters: int) -> None:
        if self._characters + characters > MOST_CHARACTERS:
            raise jinja2.TemplateError(f"a text of {characters} characters is too large")


_HOLDERS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)


def _small(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= _LARGEST


def _is_value(value: object) -> bool:
    return not isinstance(value, jinja2.Environment | Context | nodes.EvalContext)


def _width(text: str) -> int:
    """The largest number in a pattern of `%` or `format`, which may be a width; a `*` is one that
    is given.

    >>> _width("%-0500d of {:>20}")
    500
    """
    digits = "".join(c if c.isdecimal() and c.isascii() else " " for c in text).split()
    if "*" in text or any(len(word) > 9 for word in digits):
        return MOST_CHARACTERS + 1
    return max(map(int, digits), default=0)


class _Counting(NodeTransformer):
    """Has a template count its rounds and texts."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        own = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        if node.test is not None:
            node.test = nodes.And(_ask("count_round", [], node), node.test, lineno=node.lineno)
        node.body.insert(0, _round(node, own))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._called(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._called(node)

    def _called(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        own = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.body.insert(0, _round(node, own))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_ask("written", [one], one) for one in node.nodes]
        return _ask("counted", [node], node)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [
            one if isinstance(one, nodes.TemplateData) else _ask("written", [one], one)
            for one in node.nodes
        ]
        return node


def _ask(name: str, given: list[nodes.Expr], at: nodes.Node) -> nodes.Call:
    """A call of a method of the sandbox, which a template cannot replace."""
    method = nodes.EnvironmentAttribute(name, lineno=at.lineno)
    return nodes.Call(method, given, [], None, None, lineno=at.lineno)


def _round(at: nodes.Node, characters: int) -> nodes.Stmt:
    count = nodes.Const(characters, lineno=at.lineno)
    return nodes.ExprStmt(_ask("count_round", [count], at), lineno=at.lineno)
