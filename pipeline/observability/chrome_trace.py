"""Spans of a run, for a viewer of Chrome traces (Perfetto): who did what when, for whom.

Turns step records into lanes: a process for the stage, one for the critical path, one
for rewards, one for each engine with a row for each slot in use, one for each learner
rank. A leg's span is named by what became of its trajectory (the ledger's words), and
an arrow leads from its last chunk over its group's choice to its training. Pure.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from pipeline.coordinator.events import AnyCommand, AnyEvent
from pipeline.observability.spans import (
    EnvironmentCall,
    Leg,
    Load,
    RewardCall,
    StepRecord,
    TrainDispatch,
    Work,
)
from pipeline.observability.timeline import Timeline

STAGE, REWARDS, PATH, ENVIRONMENTS, LEARNER, ENGINE = 1, 2, 3, 4, 100, 1000
"""Process numbers; a learner rank's and an engine's number is added."""
STEPS_ROW, DECISIONS_ROW, TAKEN_ROW = 1, 2, 3  # of the stage
WEIGHTS_ROW = 0  # of an engine; slots follow
_COLOURS = {  # names that viewers know; distinct in grey as well
    "trained": "thread_state_running",
    "redundant": "thread_state_runnable",
    "aborted": "terrible",
    "lost": "bad",
}

Json = dict[str, Any]
_Item = TypeVar("_Item")


class Tracer:
    """Observes a run and keeps the records of some steps; `document()` is the file's content.

    Args:
        first, last: steps (from 0) that are kept; all by default.
    """

    def __init__(self, first: int = 0, last: int = 1 << 60) -> None:
        self.timeline = Timeline(first)
        self._first, self._last = first, last
        self._kept: list[StepRecord] = []

    def record_event(
        self, now: float, event: AnyEvent, commands: Sequence[AnyCommand], done: float | None = None
    ) -> list[StepRecord]:
        """See `Timeline.saw`."""
        records = self.timeline.record_event(now, event, commands, done)
        self._kept += [r for r in records if self._first <= r.step <= self._last]
        return records

    def trace_document(self, *, over: bool = True) -> Json:
        """Chrome's JSON object format; what was kept is let go.

        Args:
            over: the run is, so what is still open belongs to it.
        """
        rest = self.timeline.rest() if over else None
        if rest is not None and self._first <= rest.step <= self._last:
            self._kept.append(rest)
        kept, self._kept = self._kept, []
        return _Document(kept).made()


class _Document:
    """Turns the records of some steps into events of a trace."""

    def __init__(self, records: Sequence[StepRecord]) -> None:
        self._records = records
        starts = [s for r in records for s in (*(leg.placed for leg in r.legs), r.since)]
        self._zero = min(starts, default=0.0)  # times count from here
        self._out: list[Json] = []
        self._engines: dict[str, int] = {}
        self._ranks: set[int] = set()
        self._lanes: dict[int, list[Leg]] = {}  # trajectory -> its legs
        self._rows: dict[int, int] = {}  # id of a leg -> its row
        self._flow = 0

    def made(self) -> Json:
        """Chrome's JSON object format; times in microseconds."""
        for engine, legs in self._by_engine().items():
            self._slots(self._engine(engine), legs)
        for record in self._records:
            self._of_step(record)
        scorings = [s for record in self._records for s in record.scorings]
        for row, scoring in _rows(scorings, lambda s: (s.begun, s.ended)):
            self._scoring(row, scoring)
        callings = [c for record in self._records for c in record.callings]
        for row, calling in _rows(callings, lambda c: (c.begun, c.ended)):
            self._calling(row, calling)
        self._out += self._counters(scorings, callings)
        return {"displayTimeUnit": "ms", "traceEvents": [*self._names(), *self._out]}

    # --- lanes --------------------------------------------------------------------------

    def _by_engine(self) -> dict[str, list[Leg]]:
        found: dict[str, list[Leg]] = defaultdict(list)
        for record in self._records:
            for leg in record.legs:
                found[leg.engine].append(leg)
                self._lanes.setdefault(leg.trajectory, []).append(leg)
            for load in record.loads:
                found[load.engine] += ()
        return found

    def _slots(self, process: int, legs: list[Leg]) -> None:
        for row, leg in _rows(legs, _in_slot):
            self._rows[id(leg)] = row
            start, end = _in_slot(leg)
            args = {
                "trajectory": leg.trajectory,
                "group": leg.group,
                "prompt": leg.prompt,
                "tokens": leg.tokens,
                "finish": leg.finish,
                "reward": leg.reward,
                "waited_for_a_slot_s": round(leg.placed - leg.queued, 6) if leg.queued else None,
                "first_token_s": round(leg.first - leg.placed, 6) if leg.first else None,
            }
            self._span(process, row, leg.fate, start, end, args, _COLOURS.get(leg.fate, "grey"))

    def _of_step(self, record: StepRecord) -> None:
        if record.path:  # it has ended
            args: Json = {"seconds": record.end - record.since, "segments": len(record.path)}
            self._span(STAGE, STEPS_ROW, f"step {record.step + 1}", record.since, record.end, args)
        moment = record.since
        for piece in record.path:
            end = moment + piece.seconds
            args = {"lane": piece.lane, "for": piece.detail}
            self._span(PATH, 1, f"{piece.lane}: {piece.what}", moment, end, args)
            moment = end
        for decision in record.decisions:
            args = {"why": decision.why, "group": decision.group}
            start, end = decision.at, decision.at + decision.seconds
            self._span(STAGE, DECISIONS_ROW, decision.action, start, end, args)
        for load in record.loads:
            self._load(load)
        for work in record.works:
            self._work(work)
        for handover in record.handovers:
            self._handover(handover)

    def _load(self, load: Load) -> None:
        process, args = self._engine(load.engine), {"version": load.version}
        if not load.served:
            self._span(process, WEIGHTS_ROW, "weights refused", load.asked, load.heard, args)
        elif not load.stages:
            self._span(process, WEIGHTS_ROW, "weights", load.asked, load.heard, args)
        for stage in load.stages if load.served else ():
            self._span(process, WEIGHTS_ROW, stage.what, stage.start_s, stage.end_s, args)

    def _work(self, work: Work) -> None:
        self._ranks.add(work.rank)
        args: Json = {"of": work.of}
        if work.asked:
            args["waited_s"] = round(work.start - min(work.asked.values()), 6)
        self._span(LEARNER + work.rank, 1, work.what, work.start, work.end, args)

    def _handover(self, handover: TrainDispatch) -> None:
        # It may have begun while other orders of the same moment were still being sent.
        sent = min(handover.sent, handover.received or handover.begun or handover.sent)
        self._span(STAGE, TAKEN_ROW, "taken", sent, sent, {"group": handover.group})
        for trajectory in handover.trajectories:
            legs = self._lanes.get(trajectory)
            if not legs or not handover.begun:
                continue
            leg = legs[-1]
            self._arrow(
                [
                    (self._engine(leg.engine), self._rows[id(leg)], _in_slot(leg)[1] - 1e-6),
                    (STAGE, TAKEN_ROW, sent),
                    (LEARNER + handover.rank, 1, handover.begun),
                ]
            )

    def _scoring(self, row: int, scoring: RewardCall) -> None:
        args: Json = {"trajectory": scoring.trajectory, "reward": scoring.value}
        args["waited_s"] = round(scoring.begun - scoring.asked, 6)
        self._span(REWARDS, row, "reward", scoring.begun, scoring.ended, args)

    def _calling(self, row: int, calling: EnvironmentCall) -> None:
        args: Json = {"trajectory": calling.trajectory, "turn": calling.turn + 1}
        args |= {"appended": calling.appended, "failed": calling.why or None}
        args["waited_s"] = round(calling.begun - calling.asked, 6)
        self._span(ENVIRONMENTS, row, "environment", calling.begun, calling.ended, args)

    def _counters(
        self, scorings: list[RewardCall], callings: list[EnvironmentCall]
    ) -> Iterator[Json]:
        """Counts what waited for a slot, ran, and waited for a worker or an environment."""
        legs = [leg for record in self._records for leg in record.legs]
        waits = [
            ("waiting for a slot", [(leg.queued or leg.placed, leg.placed) for leg in legs]),
            ("running", [_in_slot(leg) for leg in legs]),
            ("waiting for a reward worker", [(s.asked, s.begun) for s in scorings]),
        ]
        if callings:
            waits.append(("waiting for the environment", [(c.asked, c.ended) for c in callings]))
        for name, spans in waits:
            changes: dict[int, int] = defaultdict(int)
            for start, end in spans:
                changes[self._us(start)] += 1
                changes[self._us(end)] -= 1
            count = 0
            for moment in sorted(moment for moment, change in changes.items() if change):
                count += changes[moment]
                yield {
                    "ph": "C", "name": name, "pid": STAGE, "tid": 0, "ts": moment,
                    "args": {"trajectories": count},
                }  # fmt: skip

    # --- the format ---------------------------------------------------------------------

    def _engine(self, name: str) -> int:
        return ENGINE + self._engines.setdefault(name, len(self._engines))

    def _us(self, moment: float) -> int:
        return max(0, round((moment - self._zero) * 1e6))

    def _span(
        self,
        process: int,
        row: int,
        name: str,
        start: float,
        end: float,
        args: Json,
        colour: str = "",
    ) -> None:
        span: Json = {
            "ph": "X",
            "name": name,
            "cat": "darts",
            "pid": process,
            "tid": row,
            "ts": self._us(start),
            "dur": max(1, self._us(end) - self._us(start)),
            "args": args,
        }
        self._out.append({**span, "cname": colour} if colour else span)

    def _arrow(self, places: Sequence[tuple[int, int, float]]) -> None:
        """Draws an arrow through places (process, row, moment), each within a span."""
        self._flow += 1
        for number, (process, row, moment) in enumerate(places):
            phase = "s" if number == 0 else "f" if number == len(places) - 1 else "t"
            point: Json = {
                "ph": phase,
                "name": "trajectory",
                "cat": "darts",
                "id": self._flow,
                "pid": process,
                "tid": row,
                "ts": self._us(moment),
            }
            self._out.append({**point, "bp": "e"} if phase == "f" else point)

    def _names(self) -> Iterator[Json]:
        processes = {PATH: "critical path", STAGE: "stage", REWARDS: "rewards"}
        if any(span["pid"] == ENVIRONMENTS for span in self._out):
            processes[ENVIRONMENTS] = "environments"
        processes |= {LEARNER + rank: f"learner rank {rank}" for rank in sorted(self._ranks)}
        processes |= {ENGINE + number: f"engine {name}" for name, number in self._engines.items()}
        for order, (process, name) in enumerate(processes.items()):
            yield _name("process_name", process, 0, name=name)
            yield _name("process_sort_index", process, 0, sort_index=order)
        rows: dict[tuple[int, int], str] = {
            (PATH, 1): "what the step waited for",
            (STAGE, STEPS_ROW): "steps",
            (STAGE, DECISIONS_ROW): "decisions",
            (STAGE, TAKEN_ROW): "to the learner",
        }
        for span in self._out:
            process, row = span["pid"], span["tid"]
            if process >= ENGINE:
                rows[process, row] = f"slot {row}" if row != WEIGHTS_ROW else "weights"
            elif process >= LEARNER:
                rows[process, row] = "work"
            elif process in (REWARDS, ENVIRONMENTS):
                rows[process, row] = f"worker {row}"
        for (process, row), name in sorted(rows.items()):
            yield _name("thread_name", process, row, name=name)


def _in_slot(leg: Leg) -> tuple[float, float]:
    """Returns when a leg held a slot, from and to; by the engine's word if it gave one."""
    start = leg.begun or leg.placed
    return start, max(start, leg.last or leg.heard)


def _rows(
    items: Iterable[_Item], times: Callable[[_Item], tuple[float, float]]
) -> Iterator[tuple[int, _Item]]:
    """Each in the lowest row (from 1) that is free from its start to its end."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []  # (until, row)
    used = 0
    for start, end, _, item in sorted(
        (*times(item), number, item) for number, item in enumerate(items)
    ):
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            row = heapq.heappop(free)
        else:
            used += 1
            row = used
        heapq.heappush(busy, (end, row))
        yield row, item


def _name(what: str, process: int, row: int, **args: Any) -> Json:
    return {"ph": "M", "name": what, "pid": process, "tid": row, "args": args}
