"""Runs the real coordinator in virtual time: a heap of moments, and models around it.

Every message takes `delay_s` in each direction and keeps its order. The loop decides nothing."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import (
    AbandonCheckpoint,
    AbortLegs,
    AnyCommand,
    AnyEvent,
    CancelReward,
    Checkpoint,
    Checkpointed,
    CloseStep,
    CloseVersion,
    DropStream,
    EngineJoined,
    ForgetGroup,
    Generate,
    GroupTrained,
    KeepRollouts,
    LearnerJoined,
    LoadWeights,
    Published,
    Report,
    RequestReward,
    Restart,
    Shutdown,
    StepDone,
    StreamTokens,
    Tick,
    Tokens,
    TrainGroup,
    WeightsLoaded,
)
from pipeline.coordinator.timeouts import longest_s
from pipeline.hardware.costs import Machines
from pipeline.simulation.engine import ModelledEngine
from pipeline.simulation.learner import ModelledLearner
from pipeline.simulation.workload import Request, Response, Workload, reward_event

_PATIENCE_S = 4.0
"""Beyond `timeouts.log_wait_s`, until which engines that load are waited for."""


class StandsStill(Exception):
    """Nothing is under way, and the run is not over: a rule or a plug-in waits for ever."""


class Observer(Protocol):
    """Sees what the coordinator sees and says."""

    def record_event(self, now: float, event: AnyEvent, commands: Sequence[AnyCommand]) -> Any: ...


class Learns(Protocol):
    """Told of every step that was applied, before its version is published."""

    def __call__(self, before: int, after: int, groups: Sequence[TrainGroup]) -> None: ...


class Simulation:
    """One run. `run()` plays it to its end, or for so many virtual seconds.

    Args:
        prompt_tokens: length of each training prompt.
        learn: moves the workload's policy; nothing moves without it.
        observers: a trace, a check of invariants, a progress bar.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        machines: Machines,
        workload: Workload,
        prompt_tokens: Sequence[int],
        learn: Learns | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.coordinator, self.machines = coordinator, machines
        self.now = 0.0
        self.over: Shutdown | None = None
        self.reports: list[dict[str, Any]] = []  # of steps, evaluations, budgets and warnings
        self.events = 0
        self.engines: dict[str, ModelledEngine] = {}
        self.learners: dict[int, ModelledLearner] = {}
        self.version = 0  # of the learner
        self.pending = 0  # moments to come that are no tick: without any, nothing can end a wait
        self._workload, self._prompt_tokens = workload, prompt_tokens
        self._learn, self._observers = learn, observers
        self._stop = coordinator.core.settings.stop_tokens
        self._idle: tuple[Callable[..., None], ...] = (self._tick,)  # moments that end no wait
        self._quiet = 0  # ticks in a row with nothing under way
        self._moments: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0
        self._responses: dict[int, Response] = {}
        self._stepping: set[int] = set()  # ranks that have done the open step's optimizer
        self._wanted: dict[int, int] = {}  # judged trajectory -> serial of the question

    # --- time ---------------------------------------------------------------------------

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        """Have `what(*arguments)` happen at a moment; in order of asking at the same one."""
        self._serial += 1
        self.pending += what not in self._idle
        heapq.heappush(self._moments, (max(when, self.now), self._serial, what, arguments))

    def soon(self, what: Callable[..., None], *arguments: Any) -> None:
        """Schedule a call after a message's delay."""
        self.at(self.now + self.machines.delay_s, what, *arguments)

    def run(self, seconds: float | None = None) -> Simulation:
        """Runs to the end, or until `seconds` of virtual time; may be called again to continue.

        Raises StandsStill, and PluginFault as the coordinator does.
        """
        while self._moments and self.over is None:
            if seconds is not None and self._moments[0][0] > seconds:
                break
            self.step()
        return self

    def step(self) -> None:
        """The next moment."""
        self.now, _, what, arguments = heapq.heappop(self._moments)
        self.pending -= what not in self._idle
        what(*arguments)

    def begin(self, version: int = 0) -> None:
        """Everybody joins."""
        self.version = version
        for rank in range(self.machines.ranks):
            self.learners[rank] = ModelledLearner(rank, self.machines.learner)
            self.soon(self.tell, LearnerJoined(rank=rank))
        self.soon(self.tell, Published(version=version))
        for number in range(self.machines.engines):
            self.join(f"e{number}", 0)
        self.at(self.now + self.machines.tick_s, self._tick)

    def join(self, name: str, epoch: int) -> None:
        """A new process of this name has come up."""
        machines = self.machines
        engine = ModelledEngine(
            name,
            epoch,
            machines.slots,
            machines.engine,
            machines.chunk_tokens,
            remaining=machines.remaining,
        )
        self.engines[name] = engine
        latency = machines.engine.profile(machines.slots)
        self.soon(
            self.tell,
            EngineJoined(engine=name, epoch=epoch, slots=machines.slots, latency=latency),
        )

    # --- the coordinator ----------------------------------------------------------------

    def tell(self, event: AnyEvent) -> None:
        """One event, and what the coordinator says to it."""
        if self.over is not None:
            return
        self.events += 1
        commands = self.coordinator.handle(event, self.now)
        for command in commands:
            self._carry_out(command)
        for observer in self._observers:
            observer.record_event(self.now, event, commands)

    def _tick(self) -> None:
        self.tell(Tick())
        self.at(self.now + self.machines.tick_s, self._tick)
        self._quiet = 0 if self.pending or self.over else self._quiet + 1
        settings = self.coordinator.core.settings
        quiet_s = self._quiet * self.machines.tick_s - settings.log_wait_s - _PATIENCE_S
        if quiet_s > 0:
            found = self.coordinator.waits.find()
            if quiet_s < longest_s((wait.kind for wait in found), settings.limits):
                return  # the watchdog may end it
            what = found[0].what if found else f"an unknown cause, {self.coordinator.run.phase}"
            raise StandsStill(f"waits for what nothing can end: {what}")

    def _carry_out(self, command: AnyCommand) -> None:
        match command:
            case Generate():
                self.soon(self._place, self.engines.get(command.engine), command)
            case AbortLegs():
                self.soon(self._end, self.engines.get(command.engine), command.legs)
            case LoadWeights():
                self.soon(self._load, self.engines.get(command.engine), command.version)
            case RequestReward():
                self._judge(command)
            case CancelReward():
                self._wanted.pop(command.trajectory, None)
            case TrainGroup() | ForgetGroup() | StreamTokens() | DropStream() | CloseVersion():
                self.soon(self._to_learner, self.learners.get(command.rank), command)
            case CloseStep():
                for learner in self.learners.values():
                    self.soon(self._to_learner, learner, command)
            case Checkpoint():
                self._cut(command)
            case AbandonCheckpoint():
                self._uncut(command)
            case Restart():
                self._restart(command)
            case Report():
                self._report(command)
            case Shutdown():
                self.over = command
            case KeepRollouts():
                pass  # modelled responses have no text to read
            case _:
                raise AssertionError(f"{command}: responses are modelled as one turn")

    def _report(self, command: Report) -> None:
        if command.what == "group":
            for member in command.fields["members"]:
                self._responses.pop(member[0], None)
        if command.what not in ("group", "decision"):
            self.reports.append({"what": command.what, "time": self.now, **command.fields})

    def _judge(self, command: RequestReward) -> None:
        response = self._responses.get(command.trajectory)
        member = self.coordinator.core.trajectories.get(command.trajectory)
        value = float(member is not None and member.foreign != "")  # the data's solutions are right
        if response is not None:
            value = response.reward_at(command.finish)
        self._wanted[command.trajectory] = self._serial
        at = self.now + self.machines.reward_s + self.machines.delay_s
        self.at(at, self._scored, command.trajectory, self._serial, value)

    def _scored(self, trajectory: int, serial: int, value: float | None) -> None:
        if self._wanted.get(trajectory) == serial:
            del self._wanted[trajectory]
            self.tell(reward_event(trajectory, value))

    def _uncut(self, command: AbandonCheckpoint) -> None:
        """Here a checkpoint ends by itself."""

    def _cut(self, command: Checkpoint) -> None:
        self.at(self.now + self.machines.save_s, self.tell, Checkpointed(step=command.step))

    def _restart(self, command: Restart) -> None:
        engine = self.engines.pop(command.peer)
        engine.stamp += 1
        self.join(command.peer, engine.epoch + 1)

    # --- engines ------------------------------------------------------------------------

    def alive(self, engine: ModelledEngine | None) -> bool:
        return engine is not None and self.engines.get(engine.name) is engine

    def _response(self, command: Generate) -> Response | None:
        known = self._responses.get(command.trajectory)
        if known is not None:
            return known
        trajectory = self.coordinator.core.trajectories.get(command.trajectory)
        if trajectory is None:
            return None  # discarded while the request was under way
        known = self._responses[command.trajectory] = self._workload.response(
            Request(
                kind=command.kind,
                prompt=command.prompt,
                group=trajectory.group,
                member=trajectory.member,
                seed=command.seed,
                version=self.engines[command.engine].version,
            )
        )
        return known

    def _place(self, engine: ModelledEngine, command: Generate) -> None:
        if not self.alive(engine):
            return
        response = self._response(command) or Response(tokens=1, reward=0.0, confidence=-1.0)
        prompt = self._prompt_tokens[command.prompt] if command.kind == "train" else 0
        prompt += self.coordinator.core.variant_tokens(command.prompt, command.variant)
        engine.place(self.now, command, prompt, response)
        self._await(engine)

    def _end(self, engine: ModelledEngine, legs: Sequence[tuple[int, int]]) -> None:
        if self.alive(engine):
            self._send(engine, engine.end(self.now, legs, self._stop))

    def _load(self, engine: ModelledEngine, version: int) -> None:
        if self.alive(engine):
            self._send(engine, engine.load(self.now, version, self._stop))
            self.at(self.now + engine.cost.load_s, self._served, engine, version)

    def _served(self, engine: ModelledEngine, version: int) -> None:
        if self.alive(engine):
            self.soon(self.tell, WeightsLoaded(engine=engine.name, version=version, gap=0.0))

    def _flush(self, engine: ModelledEngine, stamp: int) -> None:
        if self.alive(engine) and stamp == engine.stamp:
            self._send(engine, engine.flush(self.now, self._stop))

    def _send(self, engine: ModelledEngine, frame: Tokens) -> None:
        self.soon(self.hear, engine, frame)
        self._await(engine)

    def hear(self, engine: ModelledEngine, frame: Tokens) -> None:
        """A frame has arrived."""
        if self.alive(engine):
            self.tell(frame)

    def _await(self, engine: ModelledEngine) -> None:
        engine.stamp += 1
        if engine.legs:
            self.at(engine.due(), self._flush, engine, engine.stamp)

    # --- the learner --------------------------------------------------------------------

    def _to_learner(self, learner: ModelledLearner | None, command: AnyCommand) -> None:
        if learner is None or self.learners.get(learner.rank) is not learner:
            return
        learner.take(self.now, command)
        self._go_on(learner)

    def _go_on(self, learner: ModelledLearner) -> None:
        done = learner.start(self.now)
        if done is not None:
            self.at(done, self._learner_done, learner)
        if self.machines.engine.beside > 1.0:
            self._share_cores()

    def _share_cores(self) -> None:
        """Engines on the learner's machine decode slower while it works."""
        working = any(learner.current is not None for learner in self.learners.values())
        slow = self.machines.engine.beside if working else 1.0
        for engine in self.engines.values():
            if engine.slow != slow:
                engine.advance(self.now)
                engine.slow = slow
                self._await(engine)

    def _learner_done(self, learner: ModelledLearner) -> None:
        if self.learners.get(learner.rank) is not learner:
            return
        job = learner.done(self.now)
        if isinstance(job.command, CloseVersion):
            for answer in learner.answers(job.command):
                self.soon(self.tell, answer)
        elif job.command is not None:
            if job.group in learner.learned:  # else it was forgotten under way
                self.trained(learner, job.command)
        else:
            self._stepping.add(learner.rank)
            if len(self._stepping) == len(self.learners):
                self._stepping = set()
                self.optimized()
        self._go_on(learner)

    def trained(self, learner: ModelledLearner, command: TrainGroup) -> None:
        """A rank has run forward and backward of a group."""
        tokens = sum(m.weight * m.sampled_tokens for m in command.members)
        self.soon(
            self.tell,
            GroupTrained(
                rank=learner.rank,
                group=command.group,
                tokens=tokens,
                metrics={"loss": 0.0, "computed": tokens},
            ),
        )

    def optimized(self) -> None:
        """Every rank has stepped: the policy moves, the weights are published."""
        groups = [g for rank in sorted(self.learners) for g in self.learners[rank].learned.values()]
        before, self.version = self.version, self.version + 1
        if self._learn is not None:
            self._learn(before, self.version, groups)
        for rank, metrics in self.close_step().items():
            self.soon(
                self.tell,
                StepDone(
                    rank=rank,
                    step=self.coordinator.core.step,
                    version=self.version,
                    metrics=dict(metrics),
                ),
            )

    def close_step(self) -> Mapping[int, Mapping[str, float]]:
        """Each rank's figures of the step."""
        return {rank: learner.close_step() for rank, learner in sorted(self.learners.items())}

    def of(self, what: str) -> list[dict[str, Any]]:
        """Reports of one kind: step, eval, budget, warning, wait."""
        return [report for report in self.reports if report["what"] == what]
