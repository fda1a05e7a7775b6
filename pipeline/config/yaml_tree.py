"""YAML text -> a tree in which every value still knows where it was written, and back to text.

Reads the plain part of YAML with the scalars of YAML 1.2 (`1e-3` is a number,
`off` is the word off, `010` is ten), because 1.1's surprises do not belong in a
configuration. A key that is given twice is a problem, not a silent last-wins.
Collects problems as lines; never builds an object from a tag; knows no setting.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

MAX_CHARACTERS = 256_000
MAX_DEPTH = 16
MAX_NODES = 20_000  # also bounds what aliases can unfold to

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
HALVES = re.compile("[\ud800-\udfff]")  # "\ud800" as an escape; bytes of an argument as they were
_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp")
}


@dataclass(frozen=True)
class Leaf:
    """A scalar."""

    where: str  # "configs/quickstart.yaml:31", or the override
    value: object
    text: str = ""  # a scalar as it was written


@dataclass(frozen=True)
class Branch:
    """A mapping; `entries` may be changed by overrides."""

    where: str
    entries: dict[str, Tree] = field(default_factory=dict[str, "Tree"])


@dataclass(frozen=True)
class Series:
    """A list; `entries` are its items by position, "0", "1", ..., and may be changed likewise."""

    where: str
    entries: dict[str, Tree] = field(default_factory=dict[str, "Tree"])


Tree = Leaf | Branch | Series


def scalar(text: str) -> object:
    """The value of an unquoted word by the core rules of YAML 1.2.

    >>> [scalar(word) for word in ("1e-3", "010", "off", "true", "12:30")]
    [0.001, 10, 'off', True, '12:30']
    """
    if text in _WORDS:
        return _WORDS[text]
    try:
        if _INT.fullmatch(text):
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text.replace(".inf", "inf").replace(".nan", "nan").lower())
    except ValueError:  # thousands of digits, ".Inf" and the like
        return float(text.lower().replace(".", "", 1)) if "." in text else text
    return text


def plain(tree: Tree) -> object:
    """The values alone."""
    if isinstance(tree, Leaf):
        return tree.value
    if isinstance(tree, Series):
        return [plain(entry) for entry in tree.entries.values()]
    return {key: plain(entry) for key, entry in tree.entries.items()}


def parse(text: str, where: Callable[[int], str], problems: list[str]) -> Tree | None:
    """Read one YAML document; None when it is empty or could not be read at all.

    Args:
        text: the document.
        where: line number from 1 -> the place as shown to the user.
        problems: what is wrong with it is appended here, a line each.
    """
    if len(text) > MAX_CHARACTERS:
        problems.append(f"{where(1)}: more than {MAX_CHARACTERS} characters")
        return None
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                problems.append(f"{where(line)}: nested more than {MAX_DEPTH} deep")
                return None
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = min(mark.line, text.count("\n")) + 1 if mark else 1  # the end is on the last line
        problems.append(f"{where(line)}: not YAML: {error.problem or error.context}")
        return None
    # a character that YAML does not allow; an escape of none, a version of thousands of digits
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        problems.append(f"{where(1)}: not YAML: {' '.join(str(error).split())}")
        return None
    return None if node is None else _Reader(where, problems).tree(node, 0)


class _Reader:
    """Turns composed nodes into a tree; counts them, since an alias can repeat one."""

    def __init__(self, where: Callable[[int], str], problems: list[str]) -> None:
        self._where = where
        self._problems = problems
        self._nodes = 0

    def tree(self, node: yaml.Node, depth: int) -> Tree:
        where = self._where(node.start_mark.line + 1)
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            self._problem(f"{where}: aliases unfold to too much")
            return Leaf(where, None)
        if isinstance(node, yaml.MappingNode):
            return self._branch(node, where, depth)
        if isinstance(node, yaml.SequenceNode):
            items = [self.tree(item, depth + 1) for item in node.value]
            return Series(where, {str(index): item for index, item in enumerate(items)})
        text = str(node.value)
        if HALVES.search(text):
            self._problem(f"{where}: {text!r:.80} has halves of characters, which no file can hold")
            text = ""
        if node.tag not in _TAGS:
            self._problem(f"{where}: tag {node.tag!r}: tags are not read, write the plain value")
        bare = isinstance(node, yaml.ScalarNode) and not node.style
        return Leaf(where, scalar(text) if bare else text, text)

    def _branch(self, node: yaml.MappingNode, where: str, depth: int) -> Branch:
        branch = Branch(where)
        for key_node, value_node in node.value:
            at = self._where(key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(f"{at}: a key is a list or a mapping, expected a word")
                continue
            key = str(key_node.value)
            if HALVES.search(key):
                self._problem(f"{at}: key {key!r:.80} has halves of characters")
                continue
            if key == "<<":
                self._problem(f"{at}: <<: merge keys are not read, write the keys out")
                continue
            value = self.tree(value_node, depth + 1)
            if key in branch.entries:
                first = branch.entries[key].where
                self._problem(f"{at}: {key}: given twice, first at {first}; remove one")
                continue
            # the key's line, not the value's: that is where one looks
            branch.entries[key] = replace(value, where=at)
        return branch

    def _problem(self, line: str) -> None:
        if line not in self._problems:
            self._problems.append(line)


def write(values: Mapping[str, Any]) -> str:
    """Plain values as a document that `parse` reads as the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would be read as something else by the rules of `scalar`."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)
