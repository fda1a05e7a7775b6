"""The critical path of a step: the chain of waits that it was as long as.

The coordinator acts only when it hears something, so every moment of a step has a
cause: an answer was waited for, which an order had asked for, which an earlier answer
had brought about. A `Link` is one wait of that chain and knows the one before it.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec


class Link(msgspec.Struct):
    """A wait that began when the link before it ended; times are the stage's clock, seconds."""

    lane: str  # who was busy: "stage", "rewards", "engine e0", "learner rank 0"
    what: str
    start: float
    end: float
    before: Link | None = None
    detail: str = ""  # for whom


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a critical path."""

    lane: str
    what: str
    seconds: float
    detail: str = ""


def follow(
    before: Link | None, lane: str, what: str, end: float, detail: str = "", start: float = 0.0
) -> Link:
    """The next link of a chain, up to `end`; from the end of the one before, or from `start`.

    An order may be answered while others are still being sent, and stamps of several clocks
    disagree by what the clocks do: then it starts earlier, and cuts the one before short.
    """
    if before is not None:
        start = max(before.start, min(before.end, end))
    return Link(lane, what, start, max(start, end), before, detail)


def critical_path(last: Link | None, since: float) -> list[Segment]:
    """From the start of a step to its end, in order of time.

    Args:
        last: the link at whose end the step was over.
        since: when the step began; what lies before it is left out.
    """
    found: list[Segment] = []
    link, until = last, math.inf
    while link is not None and min(link.end, until) > since:
        seconds = min(link.end, until) - max(link.start, since)
        until = link.start
        if seconds > 0:
            before = found[-1] if found else None
            if before and (before.lane, before.what, before.detail) == (
                link.lane,
                link.what,
                link.detail,
            ):
                found[-1] = msgspec.structs.replace(before, seconds=before.seconds + seconds)
            else:
                found.append(Segment(link.lane, link.what, seconds, link.detail))
        link = link.before
    found.reverse()
    return found


def by_kind(path: list[Segment]) -> list[tuple[str, str, float]]:
    """Seconds of each lane and kind of wait, the longest first."""
    sums: dict[tuple[str, str], float] = {}
    for piece in path:
        key = (piece.lane, piece.what)
        sums[key] = sums.get(key, 0.0) + piece.seconds
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    return [(lane, what, seconds) for (lane, what), seconds in ordered]


def as_dicts(path: list[Segment]) -> list[dict[str, Any]]:
    """For JSON that people read."""
    return [msgspec.structs.asdict(piece) for piece in path]
