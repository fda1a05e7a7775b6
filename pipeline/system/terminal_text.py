"""Escapes untrusted text (of models, peers, user code) for terminals and logs."""

from __future__ import annotations

from typing import Any, cast

from pipeline.redaction.passwords import without_passwords

# Control characters move the cursor, or worse; those of writing direction reorder the text.
_UNSHOWN = (
    *(*range(32), *range(127, 160)),
    *(*range(0x2028, 0x202F), *range(0x2066, 0x206A)),
    *range(0xD800, 0xE000),  # halves of surrogate pairs
)
_TABLE = {code: ascii(chr(code))[1:-1] for code in _UNSHOWN if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Escape control characters, and leave out passwords; line ends and tabs stay.

    >>> printable("one\\x1b[2Jtwo\\n")
    'one\\\\x1b[2Jtwo\\n'
    """
    return without_passwords(text).translate(_TABLE)


def counted(number: int, what: str) -> str:
    """A number of things, in words: one is no plural.

    >>> counted(1, "step"), counted(2, "step")
    ('1 step', '2 steps')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def encodable(text: str) -> str:
    """Spell out what UTF-8 cannot hold: halves of surrogate pairs, from a JSON file's escapes.

    >>> encodable("\\ud800")
    '\\\\ud800'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def printable_values(value: Any) -> Any:
    """A decoded document with every text in it escaped, names of fields included.

    >>> printable_values({"\\x1b[2J": ["\\x07", 3]})
    {'\\\\x1b[2J': ['\\\\x07', 3]}
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [printable_values(item) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        entries = cast(dict[Any, Any], value).items()
        return {printable_values(key): printable_values(item) for key, item in entries}
    return value
