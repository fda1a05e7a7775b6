"""Environment `calculator`: the model writes `7+9=`, and `16` is appended.

An expression is the longest run of digits, `+ - * / . ( )` and spaces before the
text that ended the turn. What cannot be computed is left to the model: it continues
with nothing appended. Evaluates numbers and these operators, and no names.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Annotated

from msgspec import Meta

from pipeline.plugins.interfaces import EnvironmentOptions
from pipeline.plugins.ranges import NonEmpty
from pipeline.plugins.registry import register
from pipeline.plugins.views import Turn

_EXPRESSION = re.compile(r"[-+*/.()\d ]+\Z")
_LONGEST = 200  # characters: no model that learns to write more is worth the time
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


_STOP = "texts that the calculator answers to, as in stop: ['=']"


class CalculatorOptions(EnvironmentOptions, frozen=True, kw_only=True):
    """Options of the `calculator` environment."""

    stop: Annotated[tuple[NonEmpty, ...], Meta(min_length=1, description=_STOP)] = ("=",)
    """Texts after an expression whose value is wanted; they stay in the response."""


@register("environment", "calculator")
class Calculator:
    Options = CalculatorOptions
    columns = frozenset[str]()  # of the data: none is read

    def __init__(self, options: CalculatorOptions | None = None) -> None:
        self._stop = (options or CalculatorOptions()).stop

    def turn(self, turn: Turn) -> str | None:
        """The value of the expression, "" if there is none, None at the response's own end."""
        ending = next((stop for stop in self._stop if turn.text.endswith(stop)), None)
        if ending is None:
            return "" if turn.finish == "length" else None
        return value_of(turn.response.removesuffix(ending))


def value_of(text: str) -> str:
    """The value of the expression that the text ends with; "" if it has none.

    >>> value_of("7+9=16;16+2"), value_of("half of 3 is 3/2"), value_of("1/0"), value_of(";")
    ('18', '1.5', '', '')
    """
    found = _EXPRESSION.search(text[-_LONGEST:])
    if found is None:
        return ""
    try:
        value = _value(ast.parse(found[0].strip(), mode="eval").body)
    except (ArithmeticError, SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return ""
    return str(int(value)) if value == int(value) else f"{value:.10g}"


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
        case _:
            raise ValueError(f"{ast.dump(node)} is no number")
