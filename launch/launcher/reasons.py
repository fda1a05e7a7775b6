"""Finds in the log of a process why it ended: the innermost exception, in its own words.

Libraries wrap an error several times, in several processes, and the sentence that helps stands
far above the last lines. Text -> one line; pure.
"""

from __future__ import annotations

import re

_MOST = 500  # characters of a reason
_PREFIX = re.compile(
    r"^(?:\([^()]{0,60}\)\s*)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\s[-\d/:., ]*\s?\[[^\]]*\]\s?)?"
)
"""What vLLM puts before each line: `(EngineCore pid=7) ERROR 11-29 13:00:00 [core.py:9] `."""
_RAISED = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Fault)\b(?::|$)"
)
_WRAPS = ("See root cause above", "Engine core initialization failed", "Failed core proc")


def innermost_reason(text: str) -> str:
    """Returns the first exception of a log that is no wrapping of another; '' if there is none.

    >>> innermost_reason("Traceback (most recent call last):\\n  ...\\nValueError: bad port\\n")
    'ValueError: bad port'
    """
    lines = [_PREFIX.sub("", line, count=1).strip() for line in text.splitlines()]
    raised = [line for line in lines if _RAISED.match(line)]
    own = [line for line in raised if not any(words in line for words in _WRAPS)]
    return next(iter(own or raised), "")[:_MOST]
