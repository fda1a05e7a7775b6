"""Escapes untrusted text (of models, peers, user code) for terminals and logs."""

from __future__ import annotations

import re

# Control characters move the cursor, or worse; those of writing direction reorder the text.
_UNSHOWN = (
    *(*range(32), *range(127, 160)),
    *(*range(0x2028, 0x202F), *range(0x2066, 0x206A)),
    *range(0xD800, 0xE000),  # halves of surrogate pairs
)
_LOGIN = re.compile(r"(?<=://)[^/\s'\"]*@")
_TABLE = {code: ascii(chr(code))[1:-1] for code in _UNSHOWN if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Escape control characters; line ends and tabs stay.

    >>> printable("one\\x1b[2Jtwo\\n")
    'one\\\\x1b[2Jtwo\\n'
    """
    return text.translate(_TABLE)


def without_logins(text: str) -> str:
    """Leave user and password out of the addresses in a text.

    >>> without_logins("url: http://me:secret@judge:8000/score")
    'url: http://judge:8000/score'
    """
    return _LOGIN.sub("", text)
