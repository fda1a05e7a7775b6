"""Records what learner ranks did, and why each piece of work began when it did.

Works are appended to the list that is given: the open step's. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.coordinator.events import GroupFailed, GroupTrained, StepDone, StepSkipped
from pipeline.observability.critical_path import Link, follow
from pipeline.observability.spans import TrainDispatch, Work
from pipeline.wire.messages import CLOSE, CLOSE_WITH_PASSES, FORWARD_BACKWARD, Span

_CLOSES = (CLOSE, CLOSE_WITH_PASSES)


def _lane(rank: int) -> str:
    return f"learner rank {rank}"


class Ranks:
    """Groups on their way to a gradient, and the close."""

    def __init__(self) -> None:
        self._handovers: dict[int, TrainDispatch] = {}
        self._newest: dict[int, Work] = {}  # rank -> what it was asked for last
        self._closing: Link | None = None  # the close has been asked for
        self._before_close = 0  # works before that

    def asked(self, handover: TrainDispatch) -> None:
        self._handovers[handover.group] = handover

    def closes(self, works: list[Work], link: Link) -> None:
        """Every rank is asked to close the step."""
        self._closing, self._before_close = link, len(works)

    def step_over(self) -> None:
        """Forgets what lies before the next step: it explains nothing of it."""
        for work in self._newest.values():
            work.link = Link(_lane(work.rank), work.what, work.start, work.end)
        self._closing, self._before_close = None, 0

    def record_work(self, works: list[Work], rank: int, spans: Iterable[Span]) -> None:
        """Records the work that a rank reports, ahead of the events of its end."""
        for span in spans:
            work = Work(
                rank=rank,
                what=span.what,
                start=span.start_s,
                end=span.end_s,
                of=span.of,
                asked=dict(zip(span.of, span.asked_s, strict=False)),
            )
            works.append(work)
            if work.of and work.what not in _CLOSES:
                self._explain(works, work)

    def group_trained(
        self, works: list[Work], event: GroupTrained | GroupFailed, now: float
    ) -> TrainDispatch | None:
        """The handover that this answers, with the link of the answer."""
        handover = self._handovers.pop(event.group, None)
        if handover is None:
            return None
        work = self._newest.get(event.rank)
        if work is None or event.group not in work.of:
            work = self._unsaid(works, handover, now)
        handover.heard = now
        handover.received = work.asked.get(event.group, handover.sent)
        handover.begun = work.start
        handover.answer = follow(work.link, "stage", "word of the gradient on its way", now)
        return handover

    def step_applied(self, works: list[Work], event: StepDone | StepSkipped, now: float) -> Link:
        """The link of the word that a rank has closed the step."""
        lane, link = _lane(event.rank), self._closing
        said = [work for work in works[self._before_close :] if work.rank == event.rank]
        if not said:
            what = "optimizer, publish" if isinstance(event, StepDone) else "rejected"
            start = link.end if link is not None else now
            works.append(Work(rank=event.rank, what=what, start=start, end=now, of=(event.step,)))
            return follow(link, lane, what, now)
        for work in said:
            if work.what in _CLOSES:
                link = follow(link, lane, "close on its way", work.start)
            link = follow(link, lane, work.what, work.end)
        return follow(link, "stage", "word of the step on its way", now)

    def _unsaid(self, works: list[Work], handover: TrainDispatch, now: float) -> Work:
        """A rank that stamps nothing (simulated): one pass after another."""
        before = self._newest.get(handover.rank)
        behind = before is not None and before.end > handover.sent
        start = before.end if before is not None and behind else handover.sent
        work = Work(
            rank=handover.rank, what=FORWARD_BACKWARD, start=start, end=now, of=(handover.group,)
        )
        link = before.link if before is not None and behind else handover.link
        work.link = follow(link, _lane(work.rank), work.what, work.end)
        self._newest[work.rank] = work
        works.append(work)
        return work

    def _explain(self, works: list[Work], work: Work) -> None:
        """The rank was busy with another pass, or the groups of this one came then."""
        lane = _lane(work.rank)
        before = self._newest.get(work.rank)
        self._newest[work.rank] = work
        asked = max(work.asked.values(), default=0.0)
        if before is not None and before.end > asked:
            link = follow(before.link, lane, "between passes", work.start)
        else:
            handovers = [h for g in work.of if (h := self._handovers.get(g)) is not None]
            newest = max(handovers, key=lambda handover: handover.sent, default=None)
            link = follow(newest.link if newest else None, lane, "group on its way", asked)
            link = follow(link, lane, f"busy with {_in_the_way(works, work, asked)}", work.start)
        [group, *others] = work.of
        groups = f"{1 + len(others)} groups" if others else f"group {group}"
        work.link = follow(link, lane, work.what, work.end, groups)


def _in_the_way(works: list[Work], work: Work, asked: float) -> str:
    """Returns what else the rank did between being asked and beginning."""
    for other in reversed(works):
        if other.rank == work.rank and other is not work:
            if other.end <= asked:
                break
            if not other.of:
                return other.what
    return "its messages"
