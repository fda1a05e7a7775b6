"""Spans of a run, for a viewer of Chrome traces (Perfetto): who did what when, for whom.

Turns the coordinator's events and commands, with their times, into lanes: a process for
the stage, one for rewards, one for each engine with a row for each slot in use, one for
each learner rank. A leg's span is named by what became of its trajectory (the ledger's
words), and an arrow leads from its last chunk over its group's choice to its training.
Pure; the same for a real run and a simulated one.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pipeline.events import (
    AnyCommand,
    AnyEvent,
    EngineJoined,
    EngineLost,
    FinishStep,
    Judge,
    Place,
    Report,
    Restart,
    RewardMissing,
    RewardReady,
    Serve,
    StepApplied,
    StepRejected,
    Tokens,
    Train,
    Trained,
    TrainingFailed,
    Unjudge,
    WeightsRefused,
    WeightsServed,
)

STAGE, REWARDS, LEARNER, ENGINE = 1, 2, 100, 1000
"""Process numbers; a learner rank's and an engine's number is added."""
_WEIGHTS_ROW = 0  # of an engine; slots follow
_COLOURS = {  # names that viewers know; told apart in grey as well
    "trained": "thread_state_running",
    "redundant": "thread_state_runnable",
    "aborted": "terrible",
    "lost": "bad",
}
_UNKNOWN = "open"


class _Rows:
    """The lowest free row is taken first, so that lanes stay as few as were in use at once."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 1

    def take(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._next += 1
        return self._next - 1

    def give(self, row: int) -> None:
        heapq.heappush(self._free, row)


class _Leg(msgspec.Struct):
    engine: str
    row: int
    start: float
    end: float = -1.0
    tokens: int = 0
    finish: str = ""


class Trace:
    """Gathers spans between two steps; `document()` is the file's content.

    Args:
        first, last: steps (from 0) that are kept; all by default.
    """

    def __init__(self, first: int = 0, last: int = 1 << 60) -> None:
        self._first, self._last = first, last
        self._step, self._step_since = 0, 0.0
        self._zero: float | None = None  # times count from the first event
        self._now = 0.0
        self._out: list[dict[str, Any]] = []
        self._rows: dict[str, _Rows] = {}
        self._legs: dict[tuple[int, int], _Leg] = {}  # running
        self._running: Counter[int] = Counter()  # trajectory -> its legs that run
        self._ended: dict[int, list[_Leg]] = {}  # trajectory -> legs whose fate is not known
        self._fates: dict[int, tuple[str, dict[str, Any], Any]] = {}  # of those that still run
        self._rewards: dict[int, tuple[float, int]] = {}
        self._reward_rows = _Rows()
        self._loads: dict[str, tuple[float, int]] = {}
        self._training: dict[int, tuple[float, Train]] = {}  # group -> since
        self._finishing: dict[int, float] = {}  # rank -> since
        self._busy_until: dict[int, float] = {}  # rank
        self._engines: dict[str, int] = {}
        self._ranks: set[int] = set()
        self._flow = 0

    # --- what is seen -------------------------------------------------------------------

    def saw(self, now: float, event: AnyEvent, commands: Sequence[AnyCommand]) -> None:
        """One event and what the coordinator said to it."""
        self._now = now
        if self._zero is None:
            self._zero = self._step_since = now
        match event:
            case Tokens():
                for chunk in event.chunks:
                    leg = self._legs.get((chunk.trajectory, chunk.leg))
                    if leg is not None and leg.engine == event.engine:
                        leg.tokens += chunk.count
                        if chunk.finish:
                            self._leg_over(now, (chunk.trajectory, chunk.leg), chunk.finish)
            case EngineLost() | EngineJoined():
                self._engine_lost(now, event.engine)
            case WeightsServed() | WeightsRefused():
                self._loaded(now, event)
            case RewardReady() | RewardMissing():
                self._rewarded(now, event)
            case Trained() | TrainingFailed():
                self._trained(now, event)
            case StepApplied() | StepRejected():
                since = self._finishing.pop(event.rank, now)
                name = "optimizer, publish" if isinstance(event, StepApplied) else "rejected"
                self._learner_span(event.rank, name, since, now, {"step": event.step})
            case _:
                pass
        for command in commands:
            self._said(now, command)

    def _said(self, now: float, command: AnyCommand) -> None:
        match command:
            case Place():
                self._engines.setdefault(command.engine, len(self._engines))
                row = self._rows.setdefault(command.engine, _Rows()).take()
                self._legs[command.trajectory, command.leg] = _Leg(command.engine, row, now)
                self._running[command.trajectory] += 1
            case Serve():
                self._engines.setdefault(command.engine, len(self._engines))
                self._loads[command.engine] = (now, command.version)
            case Judge():
                self._rewards[command.trajectory] = (now, self._reward_rows.take())
            case Unjudge():
                _, row = self._rewards.pop(command.trajectory, (now, 0))
                if row:
                    self._reward_rows.give(row)
            case Restart():
                self._engine_lost(now, command.peer)
            case Train():
                self._ranks.add(command.rank)
                self._training[command.group] = (now, command)
            case FinishStep():
                self._finishing = dict.fromkeys(self._ranks, now)
            case Report(what="group"):
                self._group_over(command.fields)
            case Report(what="decision"):
                fields = command.fields
                args = {"why": fields["why"], "group": fields["group"]}
                self._span(STAGE, 2, fields["verb"], now, now, args)
            case Report(what="step"):
                self._span(
                    STAGE, 1, f"step {command.fields['step'] + 1}", self._step_since, now, {}
                )
                self._step, self._step_since = command.fields["step"] + 1, now
            case _:
                pass

    # --- spans --------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Nothing more will be kept."""
        return self._step > self._last

    @property
    def _kept(self) -> bool:
        return self._first <= self._step <= self._last

    def _span(
        self,
        process: int,
        row: int,
        name: str,
        start: float,
        end: float,
        args: dict[str, Any],
        colour: str = "",
    ) -> None:
        if not self._kept:
            return
        span: dict[str, Any] = {
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
        """From place to place: (process, row, moment), each within a span."""
        if not self._kept:
            return
        self._flow += 1
        for number, (process, row, moment) in enumerate(places):
            phase = "s" if number == 0 else "f" if number == len(places) - 1 else "t"
            point: dict[str, Any] = {
                "ph": phase,
                "name": "trajectory",
                "cat": "darts",
                "id": self._flow,
                "pid": process,
                "tid": row,
                "ts": self._us(moment),
            }
            self._out.append({**point, "bp": "e"} if phase == "f" else point)

    def _engine(self, name: str) -> int:
        return ENGINE + self._engines[name]

    def _leg_over(self, now: float, key: tuple[int, int], finish: str) -> None:
        leg = self._legs.pop(key)
        leg.end, leg.finish = now, finish
        self._rows[leg.engine].give(leg.row)
        trajectory = key[0]
        self._running[trajectory] -= 1
        if self._running[trajectory]:
            self._ended.setdefault(trajectory, []).append(leg)
            return
        del self._running[trajectory]
        if trajectory in self._fates:  # its group is over; this was the word of its abort
            self._leg(leg, trajectory, *self._fates.pop(trajectory))
        else:
            self._ended.setdefault(trajectory, []).append(leg)

    def _engine_lost(self, now: float, engine: str) -> None:
        for key in [key for key, leg in self._legs.items() if leg.engine == engine]:
            self._leg_over(now, key, "lost")
        self._loads.pop(engine, None)

    def _loaded(self, now: float, event: WeightsServed | WeightsRefused) -> None:
        since, version = self._loads.pop(event.engine, (now, event.version))
        name = "weights" if isinstance(event, WeightsServed) else "weights refused"
        self._span(self._engine(event.engine), _WEIGHTS_ROW, name, since, now, {"version": version})

    def _rewarded(self, now: float, event: RewardReady | RewardMissing) -> None:
        since, row = self._rewards.pop(event.trajectory, (now, 0))
        if row:
            self._reward_rows.give(row)
            value = event.value if isinstance(event, RewardReady) else event.why
            args = {"trajectory": event.trajectory, "reward": value}
            self._span(REWARDS, row, "reward", since, now, args)

    def _trained(self, now: float, event: Trained | TrainingFailed) -> None:
        since, command = self._training.pop(event.group, (now, None))
        start = self._learner_span(
            event.rank, "forward and backward", since, now, {"group": event.group}
        )
        for member in command.members if command is not None else ():
            leg = (self._ended.get(member.trajectory) or [None])[-1]
            if leg is not None:
                self._arrow(
                    [
                        (self._engine(leg.engine), leg.row, leg.end - 1e-6),
                        (STAGE, 3, since),
                        (LEARNER + event.rank, 1, start),
                    ]
                )
        if command is not None:
            self._span(STAGE, 3, "taken", since, since, {"group": event.group})

    def _learner_span(
        self, rank: int, name: str, asked: float, now: float, args: dict[str, Any]
    ) -> float:
        """One after another: it began when it was asked for, or when the one before was done."""
        start = max(asked, self._busy_until.get(rank, 0.0))
        self._busy_until[rank] = now
        self._span(LEARNER + rank, 1, name, start, now, args)
        return start

    def _group_over(self, fields: dict[str, Any]) -> None:
        for trajectory, state, _, _, reward, trained, _ in fields["members"]:
            fate = "trained" if trained else "aborted" if state == "aborted" else "redundant"
            if fields["fate"] not in ("trained", "evaluated"):
                fate = fields["fate"]
            for leg in self._ended.pop(trajectory, ()):
                self._leg(leg, trajectory, fate, fields, reward)
            if trajectory in self._running:
                self._fates[trajectory] = (fate, fields, reward)

    def _leg(
        self, leg: _Leg, trajectory: int, fate: str, fields: dict[str, Any], reward: Any
    ) -> None:
        fate = "lost" if leg.finish == "lost" else fate
        args = {
            "trajectory": trajectory,
            "group": fields.get("group"),
            "prompt": fields.get("prompt"),
            "tokens": leg.tokens,
            "finish": leg.finish,
            "reward": reward,
        }
        self._span(
            self._engine(leg.engine),
            leg.row,
            fate,
            leg.start,
            leg.end,
            args,
            _COLOURS.get(fate, "grey"),
        )

    # --- the file -----------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """Chrome's JSON object format; times in microseconds. Ends the trace."""
        for key in list(self._legs):
            self._leg_over(self._now, key, "")
        for trajectory, legs in self._ended.items():
            for leg in legs:
                self._leg(leg, trajectory, _UNKNOWN, {}, None)
        self._ended = {}
        return {"displayTimeUnit": "ms", "traceEvents": [*self._names(), *self._out]}

    def _us(self, moment: float) -> int:
        return round((moment - (self._zero or 0.0)) * 1e6)

    def _names(self) -> Iterator[dict[str, Any]]:
        processes = {STAGE: "stage", REWARDS: "rewards"}
        processes |= {LEARNER + rank: f"learner rank {rank}" for rank in sorted(self._ranks)}
        processes |= {ENGINE + number: f"engine {name}" for name, number in self._engines.items()}
        for process, name in processes.items():
            yield _name("process_name", process, 0, name)
        for row, name in ((1, "steps"), (2, "decisions"), (3, "to the learner")):
            yield _name("thread_name", STAGE, row, name)
        for number in self._engines.values():
            yield _name("thread_name", ENGINE + number, _WEIGHTS_ROW, "weights")


def _name(what: str, process: int, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": row, "args": {"name": name}}
