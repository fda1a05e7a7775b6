"""Notes who did what when, for whom: a run's legs, rewards, loads and passes, step by step.

Hears every event with the commands that answered it, and what peers say of their own
work; gives a `StepRecord` when a step has ended. Everything else that is told of time
is made of those: figures (`timing`), a viewer's file (`trace`). Pure; the same for a
real run and a simulated one, whose engines and learner stamp nothing themselves. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pipeline.coordinator.events import (
    AnyCommand,
    AnyEvent,
    CallEnvironment,
    CancelEnvironmentCall,
    CancelReward,
    CloseStep,
    EngineJoined,
    EngineLost,
    Generate,
    GroupFailed,
    GroupTrained,
    LoadWeights,
    Report,
    RequestReward,
    Restart,
    RewardMissing,
    RewardReady,
    StepDone,
    StepSkipped,
    Tokens,
    TrainGroup,
    TurnAnswered,
    TurnFailed,
    WeightsFailed,
    WeightsLoaded,
)
from pipeline.observability.critical_path import Link, critical_path, follow
from pipeline.observability.learner_timeline import Ranks
from pipeline.observability.spans import (
    Decision,
    EnvironmentCall,
    Leg,
    Load,
    RewardCall,
    StepRecord,
    TrainDispatch,
    environment_call_link,
    leg_link,
    load_link,
    scoring_link,
)
from pipeline.wire.messages import Span


class Timeline:
    """`saw` everything in order; `worked` and `loaded` hear peers' spans in the stage's clock,
    ahead of the events that they explain."""

    def __init__(self, first: int = 0) -> None:
        self._record = StepRecord(step=first, since=0.0)
        self._legs: dict[tuple[int, int], Leg] = {}  # running
        self._ended: dict[int, list[Leg]] = {}  # trajectory -> legs whose fate is not known
        self._over: dict[int, dict[str, Any]] = {}  # group is over, the leg still ends
        self._running: dict[int, int] = {}  # trajectory -> its legs that run
        self._scorings: dict[int, RewardCall] = {}
        self._callings: dict[int, EnvironmentCall] = {}
        self._loads: dict[str, Load] = {}
        self._ranks = Ranks()
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
            WeightsLoaded: self._served,
            WeightsFailed: self._served,
            RewardReady: self._rewarded,
            RewardMissing: self._rewarded,
            TurnAnswered: self._turn_answered,
            TurnFailed: self._turn_answered,
            GroupTrained: self._trained,
            GroupFailed: self._trained,
            StepDone: self._applied,
            StepSkipped: self._applied,
        }
        self._said: dict[type, Callable[[Any], object]] = {
            Generate: self._place,
            LoadWeights: self._serve,
            RequestReward: self._judge,
            CallEnvironment: self._call_environment,
            CancelEnvironmentCall: lambda c: self._callings.pop(c.trajectory, None),
            CancelReward: lambda c: self._unjudged(c.trajectory),
            TrainGroup: self._train,
            CloseStep: self._finish,
            Restart: lambda c: self._lost(c.peer),
            Report: self._report,
        }

    def record_event(
        self, now: float, event: AnyEvent, commands: Sequence[AnyCommand], done: float | None = None
    ) -> list[StepRecord]:
        """One event and what the coordinator said to it.

        Args:
            now: the stage began to look at it.
            done: the commands had been sent; at once, if not given.

        Returns the records of the steps that this ended; empty ones may end together.
        """
        self._now, self._done = now, now if done is None else done
        if not self._began:
            self._began, self._record.since = True, now
        self._answer, self._frame, self._links = None, [], {}
        heard = self._heard.get(type(event))
        if heard is not None:
            heard(event)
        finished: list[StepRecord] = []
        for command in commands:
            said = self._said.get(type(command))
            if said is not None:
                said(command)
                if isinstance(command, Report) and command.what == "step":
                    finished.append(self._step_over(command.fields))
        if commands:
            self._stage = self._why()
        return finished

    def record_work(self, rank: int, spans: Iterable[Span], hints: Iterable[float] = ()) -> None:
        """Records what a learner rank says that it did.

        Args:
            hints: seconds that hints were on their way to it.
        """
        self._record.hints += hints
        self._ranks.record_work(self._record.works, rank, spans)

    def weights_loaded(self, engine: str, spans: Iterable[Span]) -> None:
        """The stages of a load that an engine has done."""
        load = self._loads.get(engine)
        if load is not None:
            load.stages += [span for span in spans if span.of == (load.version,)]

    def rest(self) -> StepRecord:
        """Returns the record of what is not in one yet; ends the timeline."""
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
            self._record.frames.append((now, now - event.sent_s))
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

    def _served(self, event: WeightsLoaded | WeightsFailed) -> None:
        load = self._loads.get(event.engine)
        if load is None or load.version != event.version:
            return  # of an order that a newer one has overtaken
        del self._loads[event.engine]
        load.heard = self._now
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

    def _unjudged(self, trajectory: int) -> RewardCall | None:
        return self._scorings.pop(trajectory, None)

    def _turn_answered(self, event: TurnAnswered | TurnFailed) -> None:
        calling = self._callings.get(event.trajectory)
        if calling is None or calling.turn != event.turn:
            return
        del self._callings[event.trajectory]
        calling.begun, calling.ended = calling.asked, self._now
        calling.heard = self._now
        if isinstance(event, TurnFailed):
            calling.why = event.why
        else:
            calling.begun, calling.ended = event.times or (calling.asked, self._now)
            calling.appended = len(event.tokens) // 4
        self._record.callings.append(calling)
        self._answer = environment_call_link(calling)

    def _trained(self, event: GroupTrained | GroupFailed) -> None:
        handover = self._ranks.group_trained(self._record.works, event, self._now)
        if handover is not None:
            self._record.handovers.append(handover)
            self._answer = handover.answer

    def _applied(self, event: StepDone | StepSkipped) -> None:
        self._answer = self._ranks.step_applied(self._record.works, event, self._now)

    # --- orders -------------------------------------------------------------------------

    def _place(self, command: Generate) -> None:
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

    def _serve(self, command: LoadWeights) -> None:
        self._loads[command.engine] = Load(
            engine=command.engine,
            version=command.version,
            asked=self._done,
            link=self._why(),
        )

    def _judge(self, command: RequestReward) -> None:
        trajectory = command.trajectory
        self._scorings[trajectory] = RewardCall(
            trajectory=trajectory,
            kind=command.kind,
            asked=self._done,
            link=self._why((trajectory,)),
        )

    def _call_environment(self, command: CallEnvironment) -> None:
        trajectory = command.trajectory
        self._callings[trajectory] = EnvironmentCall(
            trajectory=trajectory,
            kind=command.kind,
            turn=command.turn,
            asked=self._done,
            link=self._why((trajectory,)),
        )

    def _train(self, command: TrainGroup) -> None:
        members = tuple(member.trajectory for member in command.members)
        self._ranks.asked(
            TrainDispatch(
                group=command.group,
                rank=command.rank,
                sent=self._done,
                trajectories=members,
                link=self._why(members),
            )
        )

    def _finish(self, command: CloseStep) -> None:
        del command
        self._ranks.closes(self._record.works, self._why())

    def _report(self, command: Report) -> None:
        fields = command.fields
        if command.what == "group":
            self._group_over(fields)
        elif command.what == "served":
            self._admitted(fields["engine"])
        elif command.what == "decision":
            decision = Decision(
                self._now, self._done - self._now, fields["action"], fields["group"], fields["why"]
            )
            self._record.decisions.append(decision)
            if (
                fields["action"] == "Abort"
            ):  # ended ones leave their group, which will not name them
                for trajectory in fields["ids"]:
                    for leg in self._ended.pop(trajectory, ()):
                        self._tell(leg, {"fate": "aborted", "group": fields["group"]})

    def _admitted(self, engine: str) -> None:
        """The load that was just heard of was proved well enough."""
        for load in reversed(self._record.loads):
            if load.engine == engine:
                load.served = True
                return

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
        known = self._over.get(trajectory)  # its group is over; this was the word of its abort
        self._running[trajectory] -= 1
        if not self._running[trajectory]:
            del self._running[trajectory]
            self._over.pop(trajectory, None)
        if known is not None:
            self._tell(leg, known)
        else:
            self._ended.setdefault(trajectory, []).append(leg)

    def _group_over(self, fields: dict[str, Any]) -> None:
        for trajectory, state, held, _, reward, trained, *_ in fields["members"]:
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
        self._record.legs.append(leg)

    def _step_over(self, fields: dict[str, Any]) -> StepRecord:
        record = self._record
        record.step, record.end = fields["step"], self._now
        record.since = self._now - fields["seconds"]
        record.path = critical_path(self._why(), record.since, record.end)
        # What lies before the next step explains nothing of it: let it go.
        for link in self._decided:
            link.before = None
        self._decided.clear()
        self._ranks.step_over()
        self._record = StepRecord(step=record.step + 1, since=self._now)
        return record
