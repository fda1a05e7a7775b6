"""Who did what when, for whom: a run's legs, rewards, loads and passes, step by step.

Hears every event with the commands that answered it, and what peers say of their own
work; gives a `StepRecord` when a step has ended. Everything else that is told of time
is made of those: figures (`timing`), a viewer's file (`trace`). Pure; the same for a
real run and a simulated one, whose engines and learner stamp nothing themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pipeline.causes import leg_link, load_link, scoring_link
from pipeline.critical import Link, critical_path, follow
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
from pipeline.messages import CLOSE, CLOSE_WITH_PASSES, FORWARD_BACKWARD, Span
from pipeline.spans import Decision, Handover, Leg, Load, Scoring, StepRecord, Work

_CLOSES = (CLOSE, CLOSE_WITH_PASSES)


class Timeline:
    """`saw` everything in order; `worked` and `loaded` hear peers' spans in the stage's clock,
    ahead of the events that they explain."""

    def __init__(self) -> None:
        self._record = StepRecord(step=0, since=0.0)
        self._legs: dict[tuple[int, int], Leg] = {}  # running
        self._ended: dict[int, list[Leg]] = {}  # trajectory -> legs whose fate is not known
        self._over: dict[int, dict[str, Any]] = {}  # group is over, the leg still ends
        self._running: dict[int, int] = {}  # trajectory -> its legs that run
        self._scorings: dict[int, Scoring] = {}
        self._loads: dict[str, Load] = {}
        self._handovers: dict[int, Handover] = {}
        self._last_work: dict[int, Work] = {}  # rank -> the newest that was asked for
        self._closing: Link | None = None  # FinishStep has gone out
        self._closed = 0  # works of the record before that
        self._decided: list[Link] = []  # of this step, whose past is cut off when it is over
        self._stage = Link("stage", "start", 0.0, 0.0)  # what it did last
        self._began = False
        # of the event at hand
        self._now = self._done = 0.0
        self._answer: Link | None = None
        self._frame: list[Leg] = []  # legs that the frame at hand is about, ended ones first
        self._links: dict[int, Link] = {}  # trajectory -> the stage's link after its leg
        self._heard: dict[type, Callable[[Any], None]] = {
            Tokens: self._tokens,
            EngineLost: lambda e: self._lost(e.engine),
            EngineJoined: lambda e: self._lost(e.engine),
            WeightsServed: self._served,
            WeightsRefused: self._served,
            RewardReady: self._rewarded,
            RewardMissing: self._rewarded,
            Trained: self._trained,
            TrainingFailed: self._trained,
            StepApplied: self._applied,
            StepRejected: self._applied,
        }
        self._said: dict[type, Callable[[Any], object]] = {
            Place: self._place,
            Serve: self._serve,
            Judge: self._judge,
            Unjudge: lambda c: self._unjudged(c.trajectory),
            Train: self._train,
            FinishStep: self._finish,
            Restart: lambda c: self._lost(c.peer),
            Report: self._report,
        }

    def saw(
        self, now: float, event: AnyEvent, commands: Sequence[AnyCommand], done: float | None = None
    ) -> StepRecord | None:
        """One event and what the coordinator said to it.

        Args:
            now: the stage began to look at it.
            done: the commands had been sent; at once, if not given.

        Returns the record of a step that this ended.
        """
        self._now, self._done = now, now if done is None else done
        if not self._began:
            self._began, self._record.since = True, now
        self._answer, self._frame, self._links = None, [], {}
        heard = self._heard.get(type(event))
        if heard is not None:
            heard(event)
        finished: StepRecord | None = None
        for command in commands:
            said = self._said.get(type(command))
            if said is not None:
                said(command)
                if isinstance(command, Report) and command.what == "step":
                    finished = self._step_over(command.fields)
        if commands:
            self._stage = self._why()
        return finished

    def worked(self, rank: int, spans: Iterable[Span]) -> None:
        """What a learner rank says that it did."""
        for span in spans:
            work = Work(
                rank=rank,
                what=span.what,
                start=span.start_s,
                end=span.end_s,
                of=span.of,
                asked=span.asked_s,
            )
            self._record.works.append(work)
            if work.of and work.what not in _CLOSES:
                self._explain(work)

    def loaded(self, engine: str, spans: Iterable[Span]) -> None:
        """The stages of a load that an engine has done."""
        load = self._loads.get(engine)
        if load is not None:
            load.stages += spans

    def rest(self) -> StepRecord:
        """What has not been told of yet; ends the timeline."""
        for key in list(self._legs):
            self._leg_over(key, "")
        for legs in self._ended.values():
            self._record.legs += legs
        self._ended = {}
        self._record.end = self._now
        return self._record

    # --- answers ------------------------------------------------------------------------

    def _tokens(self, event: Tokens) -> None:
        now = self._now
        if event.sent_s and event.chunks:
            self._record.frames.append(now - event.sent_s)
        for times in event.times:
            leg = self._legs.get((times.trajectory, times.leg))
            if leg is not None and leg.engine == event.engine:
                leg.begun, leg.first, leg.last = times.begun_s, times.first_s, times.last_s
        for chunk in event.chunks:
            key = (chunk.trajectory, chunk.leg)
            leg = self._legs.get(key)
            if leg is None or leg.engine != event.engine:
                continue
            leg.tokens += chunk.count
            if chunk.finish:
                self._frame.insert(0, leg)
                self._leg_over(key, chunk.finish)
            else:
                leg.first = leg.first or now
                self._frame.append(leg)

    def _lost(self, engine: str) -> None:
        for key in [key for key, leg in self._legs.items() if leg.engine == engine]:
            self._frame.append(self._legs[key])
            self._leg_over(key, "lost")
        self._loads.pop(engine, None)

    def _served(self, event: WeightsServed | WeightsRefused) -> None:
        load = self._loads.pop(event.engine, None)
        if load is None or load.version != event.version:
            return
        load.heard, load.served = self._now, isinstance(event, WeightsServed)
        self._record.loads.append(load)
        self._answer = load_link(load)

    def _rewarded(self, event: RewardReady | RewardMissing) -> None:
        scoring = self._unjudged(event.trajectory)
        if scoring is None:
            return
        times = event.times if isinstance(event, RewardReady) else None
        scoring.begun, scoring.ended = times or (scoring.asked, self._now)
        scoring.heard = self._now
        scoring.value = event.value if isinstance(event, RewardReady) else event.why
        self._record.scorings.append(scoring)
        self._answer = scoring_link(scoring)

    def _unjudged(self, trajectory: int) -> Scoring | None:
        return self._scorings.pop(trajectory, None)

    def _trained(self, event: Trained | TrainingFailed) -> None:
        handover = self._handovers.pop(event.group, None)
        if handover is None:
            return
        handover.heard = self._now
        self._record.handovers.append(handover)
        work = self._last_work.get(event.rank)
        if work is None or event.group not in work.of:  # nobody said: one after another, then
            work = self._unsaid(handover)
        handover.received, handover.begun = work.asked or handover.sent, work.start
        self._answer = follow(work.link, "stage", "word of the gradient on its way", self._now)

    def _unsaid(self, handover: Handover) -> Work:
        before = self._last_work.get(handover.rank)
        start = max(handover.sent, before.end if before else 0.0)
        work = Work(
            rank=handover.rank,
            what=FORWARD_BACKWARD,
            start=start,
            end=self._now,
            of=(handover.group,),
        )
        behind = before.link if before and start > handover.sent else handover.link
        work.link = follow(behind, f"learner rank {work.rank}", work.what, work.end, start=start)
        self._last_work[work.rank] = work
        self._record.works.append(work)
        return work

    def _explain(self, work: Work) -> None:
        """Why a pass began when it did: the rank was busy with another, or its groups came then."""
        lane = f"learner rank {work.rank}"
        before = self._last_work.get(work.rank)
        self._last_work[work.rank] = work
        if before is not None and before.end > work.asked:
            link = follow(before.link, lane, "between passes", work.start)
        else:
            handovers = [h for g in work.of if (h := self._handovers.get(g)) is not None]
            newest = max(handovers, key=lambda handover: handover.sent, default=None)
            link = newest.link if newest else None
            link = follow(link, lane, "group on its way", work.asked, start=work.asked)
            link = follow(link, lane, f"busy with {self._in_the_way(work)}", work.start)
        [group, *others] = work.of
        groups = f"{1 + len(others)} groups" if others else f"group {group}"
        work.link = follow(link, lane, work.what, work.end, groups)

    def _in_the_way(self, work: Work) -> str:
        """What else the rank did between being asked and beginning."""
        for other in reversed(self._record.works[:-1]):
            if other.rank == work.rank and not other.of and other.end > work.asked:
                return other.what
        return "its messages"

    def _applied(self, event: StepApplied | StepRejected) -> None:
        lane, link = f"learner rank {event.rank}", self._closing
        said = [w for w in self._record.works[self._closed :] if w.rank == event.rank]
        for work in said:
            if work.what in _CLOSES:
                link = follow(link, lane, "close on its way", work.start)
            link = follow(link, lane, work.what, work.end)
        if not said:
            what = "optimizer, publish" if isinstance(event, StepApplied) else "rejected"
            start = link.end if link is not None else self._now
            self._record.works.append(
                Work(rank=event.rank, what=what, start=start, end=self._now, of=(event.step,))
            )
            self._answer = follow(link, lane, what, self._now, start=start)
            return
        self._answer = follow(link, "stage", "word of the step on its way", self._now)

    # --- orders -------------------------------------------------------------------------

    def _place(self, command: Place) -> None:
        self._legs[command.trajectory, command.leg] = Leg(
            engine=command.engine,
            trajectory=command.trajectory,
            kind=command.kind,
            prompt=command.prompt,
            queued=command.since,
            placed=self._done,
            asked=self._why(),
        )
        self._running[command.trajectory] = self._running.get(command.trajectory, 0) + 1

    def _serve(self, command: Serve) -> None:
        self._loads[command.engine] = Load(
            engine=command.engine,
            version=command.version,
            asked=self._done,
            link=self._why(),
        )

    def _judge(self, command: Judge) -> None:
        trajectory = command.trajectory
        self._scorings[trajectory] = Scoring(
            trajectory=trajectory, asked=self._done, link=self._why((trajectory,))
        )

    def _train(self, command: Train) -> None:
        members = tuple(member.trajectory for member in command.members)
        self._handovers[command.group] = Handover(
            group=command.group,
            rank=command.rank,
            sent=self._done,
            trajectories=members,
            link=self._why(members),
        )

    def _finish(self, command: FinishStep) -> None:
        del command
        self._closing, self._closed = self._why(), len(self._record.works)

    def _report(self, command: Report) -> None:
        fields = command.fields
        if command.what == "group":
            self._group_over(fields)
        elif command.what == "decision":
            decision = Decision(
                self._now, self._done - self._now, fields["verb"], fields["group"], fields["why"]
            )
            self._record.decisions.append(decision)

    def _why(self, wanted: Sequence[int] = ()) -> Link:
        """The stage's link that a command hangs on: deciding on the event at hand.

        Args:
            wanted: of a frame with several ends, those of these trajectories count.
        """
        legs = self._frame
        leg = next((leg for leg in legs if leg.trajectory in wanted), legs[0] if legs else None)
        key = leg.trajectory if leg is not None else -1
        link = self._links.get(key)
        if link is None:
            before = self._answer
            if before is None:
                before = leg_link(leg, self._now) if leg is not None else self._waited()
            link = self._links[key] = follow(before, "stage", "deciding", self._done)
            self._decided.append(link)
        return link

    def _waited(self) -> Link:
        """Nobody answered: the clock, a peer that came or went, the start."""
        return follow(self._stage, "stage", "waiting for its clock or its peers", self._now)

    # --- ends ---------------------------------------------------------------------------

    def _leg_over(self, key: tuple[int, int], finish: str) -> None:
        leg = self._legs.pop(key)
        leg.heard, leg.finish = self._now, finish
        trajectory = leg.trajectory
        self._running[trajectory] -= 1
        if not self._running[trajectory]:
            del self._running[trajectory]
            if trajectory in self._over:  # its group is over; this was the word of its abort
                self._tell(leg, self._over.pop(trajectory))
                return
        self._ended.setdefault(trajectory, []).append(leg)

    def _group_over(self, fields: dict[str, Any]) -> None:
        for trajectory, state, held, _, reward, trained, _ in fields["members"]:
            fate = "trained" if trained else "aborted" if state == "aborted" else "redundant"
            if fields["fate"] not in ("trained", "evaluated"):
                fate = fields["fate"]
            if fields["kind"] == "eval":
                fate = "eval"
            known = {"fate": fate, "group": fields["group"], "length": held, "reward": reward}
            for leg in self._ended.pop(trajectory, ()):
                self._tell(leg, known)
            if trajectory in self._running:
                self._over[trajectory] = known

    def _tell(self, leg: Leg, known: dict[str, Any]) -> None:
        for name, value in known.items():
            setattr(leg, name, value)
        if leg.finish == "lost":
            leg.fate = "lost"
        leg.asked = None
        self._record.legs.append(leg)

    def _step_over(self, fields: dict[str, Any]) -> StepRecord:
        record = self._record
        record.step, record.end = fields["step"], self._now
        record.since = self._now - fields["seconds"]
        record.path = critical_path(self._why().before, record.since)
        # What lies before the next step explains nothing of it: let it go.
        for link in self._decided:
            link.before = None
        self._decided.clear()
        for work in self._last_work.values():
            work.link = None
        self._closing, self._closed = None, 0
        self._record = StepRecord(step=record.step + 1, since=self._now)
        return record
