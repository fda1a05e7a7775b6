"""Records what a rank did when, in its own monotonic clock: for traces and the critical path.

Turns arrivals and ends of work into `Spans`. The client's thread records arrivals,
the main thread the rest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from pipeline.wire.messages import (
    CloseStep,
    ForgetGroup,
    Span,
    Spans,
    StreamedTokens,
    ToPeer,
    TrainGroup,
)

_ONE_PIECE_S = 0.001  # work of one kind with shorter gaps is one span
_STREAMED = 4096  # most arrivals of streamed tokens per report; the newest are kept


class WorkLog:
    """Spans since the last `take_spans`, and when orders that are not done yet arrived."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._came: dict[tuple[type, int], float] = {}
        self._streamed: deque[tuple[float, float]] = deque(maxlen=_STREAMED)

    def record_arrival(self, message: ToPeer) -> None:
        """Record the arrival of an order for a group, a close or streamed tokens."""
        match message:
            case TrainGroup(group=number) | CloseStep(step=number):
                self._came[type(message), number] = time.monotonic()
            case ForgetGroup(group=number):
                self._came.pop((TrainGroup, number), None)
            case StreamedTokens(sent_at_s=sent_at_s):
                self._streamed.append((sent_at_s, time.monotonic()))
            case _:
                pass

    def record_work(
        self, what: str, start_s: float, orders: Sequence[TrainGroup | CloseStep] = ()
    ) -> None:
        """Record work that began at `start_s` and has just ended; it carried out `orders`."""
        numbers = tuple(o.group if isinstance(o, TrainGroup) else o.step for o in orders)
        now = time.monotonic()
        came = [self._came.pop((type(o), n), now) for o, n in zip(orders, numbers, strict=True)]
        last = self._spans[-1] if self._spans else None
        if last and not orders and last.what == what and start_s - last.end_s < _ONE_PIECE_S:
            self._spans.pop()
            start_s = last.start_s
        self._spans.append(Span(what, start_s, now, numbers, tuple(came)))

    def take_spans(self) -> Spans:
        """Return everything recorded since the last call."""
        spans, self._spans = self._spans, []
        streamed = [self._streamed.popleft() for _ in range(len(self._streamed))]
        return Spans(spans=tuple(spans), hints=tuple(streamed))


def hidden_seconds(spans: Sequence[tuple[float, float]], last_group_s: float) -> float:
    """Return how many seconds of these (begin, end) ran before the step's last group came. Pure.

    >>> hidden_seconds([(0.0, 2.0), (3.0, 5.0), (6.0, 7.0)], last_group_s=4.0)
    3.0
    """
    return sum(max(0.0, min(end, last_group_s) - begin) for begin, end in spans)
