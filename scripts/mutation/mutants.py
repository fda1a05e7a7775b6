"""Lists the small deliberate bugs ("mutants") of a source file, and makes each.

Turns source text into mutants, and one of them into the text of the file with that bug.
A mutant is named `file:function:operator:ordinal`, so its name survives changes of other
functions, and a sample drawn by name is the same set at another commit. Pure.

Left alone: type annotations, texts, decorators, log lines, and what a `raise` says.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Mutant(NamedTuple):
    """One change at one place."""

    id: str
    file: str
    function: str
    """Qualified name of the function or class it is in, "" for the module itself."""
    line: int
    change: str
    """`before -> after`, as source."""


class _Place(NamedTuple):
    """A node, and where its parent holds it."""

    function: str
    parent: ast.AST
    field: str
    at: int | None
    node: ast.AST

    def replace(self, node: ast.AST) -> None:
        if self.at is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.at] = node


COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
}
EXTREMES = {"min": "max", "max": "min"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LOGS = ("log.", "logger.", "logging.")


def mutants_of(source: str, file: str) -> list[Mutant]:
    """Return every mutant of a file, in the order of its text."""
    return [mutant for mutant, _, _ in _changes(ast.parse(source), file)]


def mutated(source: str, mutant: Mutant) -> str:
    """Return the file's text with this bug; comments and blank lines are lost.

    Raises KeyError if the source has no such mutant.
    """
    tree = ast.parse(source)
    for found, place, node in _changes(tree, mutant.file):
        if found == mutant:
            place.replace(node)
            return ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    raise KeyError(mutant.id)


def noting(source: str, file: str) -> str:
    """Return the file's text with a note at the top of each function that it was entered.

    The notes, `file:function`, are in the set `builtins.REACHED`. A trace function would see
    as much, and slow every call of every library.
    """
    tree = ast.parse(source)
    for place in list(_places(tree, "")):
        node = place.node
        if isinstance(node, FUNCTIONS):
            name = f"{place.function}.{node.name}" if place.function else node.name
            note = ast.parse(f"_b.REACHED.add({f'{file}:{name}'!r})").body
            at = _after_docstring(node.body)
            node.body[at:at] = note
    begin = "import builtins as _b\n_b.REACHED = getattr(_b, 'REACHED', set())"
    at = _after_docstring(tree.body)
    while at < len(tree.body) and isinstance(tree.body[at], ast.ImportFrom):
        at += 1  # of __future__
    tree.body[at:at] = ast.parse(begin).body
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _after_docstring(body: Sequence[ast.stmt]) -> int:
    first = body[0] if body else None
    return int(isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant))


def sample_of(mutants: Iterable[Mutant], count: int, seed: int) -> list[Mutant]:
    """Draw so many mutants by a hash of their names, in the order of that hash.

    A larger sample begins with the smaller one, and mutants that are added or removed
    elsewhere change nothing about the others' order.
    """

    def rank(mutant: Mutant) -> bytes:
        return hashlib.sha256(f"{seed}/{mutant.id}".encode()).digest()

    return sorted(mutants, key=rank)[:count]


def _changes(tree: ast.Module, file: str) -> Iterator[tuple[Mutant, _Place, ast.AST]]:
    ordinals: Counter[tuple[str, str]] = Counter()
    for place in list(_places(tree, "")):
        for operator, node in _changed(place.node):
            ordinal = ordinals[place.function, operator]
            ordinals[place.function, operator] += 1
            yield (
                Mutant(
                    id=f"{file}:{place.function}:{operator}:{ordinal}",
                    file=file,
                    function=place.function,
                    line=getattr(place.node, "lineno", 0),
                    change=f"{_line(place.node)} -> {_line(node)}",
                ),
                place,
                node,
            )


def _line(node: ast.AST) -> str:
    """Return the first line of a node as source."""
    copied = ast.unparse(ast.fix_missing_locations(node))
    first, *more = copied.splitlines()
    return first + (" ..." if more else "")


SKIPPED = {"annotation", "returns", "decorator_list", "type_params"}


def _places(parent: ast.AST, function: str) -> Iterator[_Place]:
    for field, value in ast.iter_fields(parent):
        if field in SKIPPED or (isinstance(parent, ast.Raise) and field in ("exc", "cause")):
            continue
        children: Sequence[object] = value if isinstance(value, list) else [value]
        for index, node in enumerate(children):
            if not isinstance(node, ast.AST) or _is_talk(node):
                continue
            at = index if isinstance(value, list) else None
            yield _Place(function, parent, field, at, node)
            within = function
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                within = f"{function}.{node.name}" if function else node.name
            yield from _places(node, within)


def _is_talk(node: ast.AST) -> bool:
    """Return True for texts, log lines and tests of types only."""
    match node:
        case ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.Assert():
            return True
        case ast.Expr(value=ast.Constant()):  # a docstring
            return True
        case ast.Expr(value=ast.Call(func=called)):
            return ast.unparse(called).startswith(LOGS)
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case _:
            return False


def _changed(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield (operator, the node as it becomes) for all that can be done to this node alone."""
    match node:
        case ast.Compare(left=left, ops=operators, comparators=others):
            for at, operator in enumerate(operators):
                changed = [*operators]
                changed[at] = COMPARISONS[type(operator)]()
                yield "compare", ast.Compare(left, changed, others)
        case ast.BinOp(left=left, op=operator, right=right):
            if type(operator) in ARITHMETIC and not _is_text(left) and not _is_text(right):
                yield "arithmetic", ast.BinOp(left, ARITHMETIC[type(operator)](), right)
        case ast.AugAssign(target=target, op=operator, value=value):
            if type(operator) in ARITHMETIC:
                yield "arithmetic", ast.AugAssign(target, ARITHMETIC[type(operator)](), value)
            yield "removed", ast.Pass()
        case ast.BoolOp(op=operator, values=values):
            other = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield "boolean", ast.BoolOp(other, values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not", operand
        case ast.Constant(value=value) if isinstance(value, bool):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=value) if isinstance(value, int | float):
            yield "constant", ast.Constant(value + 1)
            yield "constant", ast.Constant(value - 1)
        case ast.If(test=test, body=body, orelse=orelse):
            yield "condition", ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.IfExp(test=test, body=one, orelse=other):
            yield "condition", ast.IfExp(ast.UnaryOp(ast.Not(), test), one, other)
        case ast.Return(value=ast.expr() as value):
            if not (isinstance(value, ast.Constant) and value.value is None):
                yield "returned", ast.Return(ast.Constant(None))
        case ast.Call(func=ast.Name(id=name) as called, args=arguments, keywords=keywords):
            if name in EXTREMES:
                swapped = ast.Name(EXTREMES[name], called.ctx)
                yield "extreme", ast.Call(swapped, arguments, keywords)
        case ast.Expr() | ast.Raise() | ast.Continue() | ast.Break():
            yield "removed", ast.Pass()
        case ast.Assign(targets=targets):
            if not any(isinstance(part, ast.Name) for target in targets for part in _parts(target)):
                yield "removed", ast.Pass()  # of a local name only an error would come
        case _:
            return


def _parts(target: ast.expr) -> list[ast.expr]:
    return target.elts if isinstance(target, ast.Tuple) else [target]


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
