"""The critical path of a step: the chain of waits that it was as long as.

The coordinator acts only when it hears something, so every moment of a step has a
cause: an answer was waited for, which an order had asked for, which an earlier answer
had brought about. A `Link` is one wait of that chain and knows the one before it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

NOT_KNOWN = "not known"
"""Where the cause of a wait is lost: a fault of darts, and the tests look for it."""


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


def follow(before: Link | None, lane: str, what: str, end: float, detail: str = "") -> Link:
    """The next link of a chain, from the end of the one before up to `end`.

    An order may be answered while others are still being sent, and stamps of several clocks
    disagree by what the clocks do: then it starts earlier, and cuts the one before short.
    Without one before it the wait's beginning is unknown: it has no length.
    """
    start = max(before.start, min(before.end, end)) if before is not None else end
    return Link(lane, what, start, max(start, end), before, detail)


def critical_path(last: Link, since: float, until: float) -> list[Segment]:
    """Returns segments from the start of a step to its end, in order of time. They are as long as
    the step: what no link accounts for is a segment of its own, `NOT_KNOWN`.

    Args:
        last: the link at whose end the step was over.
        since, until: when the step began and ended; what lies outside is left out.
    """
    found: list[Segment] = []
    link: Link | None = last
    while link is not None and until > since:
        end, start = min(link.end, until), max(link.start, since)
        if end < until:
            _put(found, Segment("stage", NOT_KNOWN, until - max(end, since)))
        if end > start:
            _put(found, Segment(link.lane, link.what, end - start, link.detail))
        until, link = min(until, max(start, since)), link.before
    if until > since:
        _put(found, Segment("stage", NOT_KNOWN, until - since))
    found.reverse()
    return found


def _put(found: list[Segment], piece: Segment) -> None:
    """Pieces of one wait become one."""
    last = found[-1] if found else None
    if last and (last.lane, last.what, last.detail) == (piece.lane, piece.what, piece.detail):
        found[-1] = msgspec.structs.replace(last, seconds=last.seconds + piece.seconds)
    else:
        found.append(piece)


def by_kind(paths: Iterable[Sequence[Segment]]) -> list[tuple[str, str, float]]:
    """Lane, what and seconds of each kind of wait, the longest first."""
    sums: dict[tuple[str, str], float] = {}
    for path in paths:
        for piece in path:
            key = (piece.lane, piece.what)
            sums[key] = sums.get(key, 0.0) + piece.seconds
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    return [(lane, what, seconds) for (lane, what), seconds in ordered]
