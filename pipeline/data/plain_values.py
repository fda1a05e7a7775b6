"""Values of a row as JSON can hold them, by one rule, for what a reward is sent.

Dates and times become text in ISO 8601, durations seconds, decimals text with all their digits,
bytes text in base64, arrays lists, and numbers that are not finite null. Anything else (an image
that was decoded, say) has no rule and is refused.
"""

from __future__ import annotations

import base64
import math
import uuid
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast

import msgspec


class Unreadable(msgspec.Struct, frozen=True):
    """A value that its file holds and Python cannot; read in its place."""

    why: str


def plain(value: Any) -> Any:
    """The value in JSON's types. Raises ValueError with what it is, if there is no rule for it."""
    kind = type(value)
    if kind in (str, int, bool) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        given = cast(Mapping[Any, Any], value)
        return {str(key): plain(inner) for key, inner in given.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in cast(list[Any], value)]
    if isinstance(value, Unreadable):
        raise ValueError(f"cannot be read: {value.why}")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal | uuid.UUID | str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return plain(value.tolist())
    raise ValueError(f"holds a {kind.__name__}, which cannot be sent to a reward")
