"""Faults in virtual time, and what a launcher does about them.

The faults are those of a plan (`plans`). Frames are lost, doubled or late; engines die, come
back, grow slow, refuse weights or prove wrong ones; rewards fail; losses and steps are not
finite; the learner or the stage dies, and the run resumes from its last checkpoint. Engines,
rewards, learner and disk may also stop answering without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import (
    AbandonCheckpoint,
    AnyEvent,
    Checkpoint,
    Checkpointed,
    EngineLost,
    Generate,
    GroupFailed,
    Halt,
    LearnerLost,
    Report,
    Restart,
    RewardMissing,
    RewardReady,
    StepSkipped,
    Tick,
    Tokens,
    TrainGroup,
    WeightsFailed,
    WeightsLoaded,
)
from pipeline.hardware.costs import Machines
from pipeline.simulation.engine import ModelledEngine
from pipeline.simulation.fault_plan import DISTRUST, Fault, What
from pipeline.simulation.invariants import (
    Violation,
    check,
    check_budget,
    check_request,
    check_train,
)
from pipeline.simulation.learner import ModelledLearner
from pipeline.simulation.loop import Simulation
from pipeline.simulation.workload import Workload, reward_event


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Rules of the launcher."""

    detect_s: float = 0.4  # from a death to its notice
    back_s: float = 0.3  # from the notice to the new process
    restarts: int = 1000  # of an engine, then the run is halted
    most: int = 1024  # candidates that a budget may give a group
    doomed_at: float = float("inf")  # from then on nothing that dies comes back


class Memory(msgspec.Struct, kw_only=True):
    """State that outlives the stage: the newest checkpoint, and the counts at it."""

    saved: snapshot.Snapshot | None = None
    trained: Counter[int] = msgspec.field(default_factory=Counter[int])
    fates: Counter[int] = msgspec.field(default_factory=Counter[int])
    epochs: Counter[str] = msgspec.field(default_factory=Counter[str])


class Faulty(Simulation):
    """One life of a stage, from a start or a checkpoint to its end, or to the next fault
    that only a checkpoint mends (`fallen`). Every event is checked."""

    def __init__(
        self,
        coordinator: Coordinator,
        machines: Machines,
        workload: Workload,
        prompt_tokens: Sequence[int],
        *,
        plan: Sequence[Fault],
        rules: Rules,
        memory: Memory,
        log: Callable[[float, str], None],
        begin_at: float = 0.0,
    ) -> None:
        super().__init__(coordinator, machines, workload, prompt_tokens)
        self.fallen = ""  # why this life ended without the coordinator's own word
        self._rules, self._memory, self._log = rules, memory, log
        self._trained, self._fates = Counter(memory.trained), Counter(memory.fates)
        self._armed: Counter[tuple[What, str]] = Counter()
        self._late: dict[str, float] = {}
        self._hung: set[ModelledEngine] = set()
        self._cutting: tuple[snapshot.Snapshot, Counter[int], Counter[int]] | None = None
        self._idle = (*self._idle, self._heartbeat, self._strike)
        self._struck_ever: set[What] = set()
        self.now = begin_at
        for fault in plan:
            if fault.at >= begin_at:
                self.at(fault.at, self._strike, fault)

    def start(self) -> None:
        """Start from the newest checkpoint, or from nothing."""
        saved = self._memory.saved
        asked = []
        if saved is not None:
            again = msgspec.msgpack.decode(msgspec.msgpack.encode(saved), type=snapshot.Snapshot)
            asked = snapshot.restore(self.coordinator, again, self.now)
        self.begin(saved.version if saved is not None else 0)
        for command in asked:
            self._carry_out(command)

    def join(self, name: str, epoch: int) -> None:
        self._memory.epochs[name] += 1
        super().join(name, self._memory.epochs[name])

    # --- every event --------------------------------------------------------------------

    def tell(self, event: AnyEvent) -> None:
        if self.over is not None or self.fallen:
            return
        self._log(self.now, describe(event))
        super().tell(event)
        if self.events > 40_000:
            raise Violation("the run never ends")
        check(self.coordinator, self._fates)
        check_budget(self.coordinator, self._rules.most)

    def _carry_out(self, command: Any) -> None:
        if isinstance(command, TrainGroup):
            check_train(self.coordinator, command)
        elif isinstance(command, Generate):
            check_request(self.coordinator, command)
        super()._carry_out(command)

    def _report(self, command: Report) -> None:
        super()._report(command)
        if command.what == "group":
            self._fates[command.fields["group"]] += 1
            if command.fields["fate"] == "trained":
                self._trained[command.fields["group"]] += 1
                if self._trained[command.fields["group"]] > 1:
                    raise Violation(f"group {command.fields['group']} was trained on twice")

    def _tick(self) -> None:
        if not self.fallen:
            super()._tick()
        for engine in [e for e in self.engines.values() if e not in self._hung]:
            # what shows that a frame before it was lost
            frame = engine.flush(self.now, self._stop)
            deliver = self.hear if frame.chunks else self._heartbeat
            self.soon(deliver, engine, frame)
            self._await(engine)

    def _heartbeat(self, engine: ModelledEngine, frame: Tokens) -> None:
        self.hear(engine, frame)

    # --- faults -------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        name = f"e{fault.target}"
        self._struck_ever.add(fault.what)
        self._log(self.now, f"FAULT {fault.what} {name} {fault.amount:.2g}")
        match fault.what:
            case What.ENGINE_DIES:
                self._engine_dies(name)
            case What.ENGINE_SLOW:
                if name in self.engines:
                    engine = self.engines[name]
                    engine.advance(self.now)
                    engine.slow = max(1.0, fault.amount)
                    self._await(engine)
            case What.ENGINE_HANGS:
                self._hung |= {e for e in self.engines.values() if e.name == name}
            case What.REQUEST_FORGOTTEN:
                if name in self.engines:
                    self.engines[name].forget(self.now)
                    self._await(self.engines[name])
            case What.LEARNER_HANGS:
                self.learners.clear()  # its ranks hear nothing, and their death is not reported
            case What.LEARNER_DIES:
                self.learners.clear()
                self.soon(self.tell, LearnerLost(rank=0, why="killed"))
            case What.STAGE_DIES:
                self.fallen = "the stage died"
            case What.FRAME_LATE:
                self._late[name] = fault.amount
            case (
                What.FRAME_LOST
                | What.FRAME_DOUBLED
                | What.LOAD_REFUSED
                | What.LOAD_WRONG
                | What.LOAD_HANGS
                | What.ABORT_IGNORED
            ):
                self._armed[fault.what, name] += 1
            case _:
                self._armed[fault.what, ""] += 1

    def _struck(self, what: What, name: str = "") -> bool:
        """Returns True if such a fault is planned for this moment; it is used up."""
        if self._armed[what, name] < 1:
            return False
        self._armed[what, name] -= 1
        self._log(self.now, f"  hit: {what} {name}")
        return True

    def alive(self, engine: ModelledEngine | None) -> bool:
        """One that hangs hears nothing and says nothing."""
        return super().alive(engine) and engine not in self._hung

    def _end(self, engine: ModelledEngine, legs: Sequence[tuple[int, int]]) -> None:
        if self.alive(engine) and not self._struck(What.ABORT_IGNORED, engine.name):
            super()._end(engine, legs)

    def _engine_dies(self, name: str) -> None:
        engine = self.engines.pop(name, None)
        if engine is not None:
            self.at(self.now + self._rules.detect_s, self._notice, name)

    def _notice(self, name: str) -> None:
        self.tell(EngineLost(engine=name, why="killed"))
        self._come_back(name)

    def _come_back(self, name: str) -> None:
        self.at(self.now + self._rules.back_s, self._start_again, name)

    def _start_again(self, name: str) -> None:
        starts = self._memory.epochs[name]
        if self.now >= self._rules.doomed_at or starts > self._rules.restarts:
            self.tell(Halt(error=f"{name} ended for the {starts}th time (engine.restarts)"))
        else:
            self.join(name, 0)

    def _restart(self, command: Restart) -> None:
        if self.engines.pop(command.peer, None) is not None:
            self.soon(self._come_back, command.peer)

    def hear(self, engine: ModelledEngine, frame: Tokens) -> None:
        if not self.alive(engine):
            return
        late_s = self._late.pop(engine.name, 0.0)
        if late_s:
            self._log(self.now, f"  hit: {What.FRAME_LATE} {engine.name}")
            self.at(self.now + late_s, self._hear_late, engine, frame)
        elif not self._struck(What.FRAME_LOST, engine.name):
            self.tell(frame)
            if self._struck(What.FRAME_DOUBLED, engine.name):
                self.tell(frame)

    def _hear_late(self, engine: ModelledEngine, frame: Tokens) -> None:
        del engine  # the stage hears it even of one that it has counted as lost
        self.tell(frame)

    def _served(self, engine: ModelledEngine, version: int) -> None:
        if not self.alive(engine):
            return
        if self._struck(What.LOAD_REFUSED, engine.name):
            refused = WeightsFailed(engine=engine.name, version=version, why="checksum")
            self.soon(self.tell, refused)
        elif self._struck(What.LOAD_HANGS, engine.name):
            pass
        elif self._struck(What.LOAD_WRONG, engine.name):
            self.soon(self.tell, WeightsLoaded(engine=engine.name, version=version, gap=0.5))
        else:
            super()._served(engine, version)

    def _scored(self, trajectory: int, serial: int, value: float | None) -> None:
        if self._wanted.get(trajectory) != serial:
            return
        if self._struck(What.REWARD_FAILS):
            del self._wanted[trajectory]
            self.tell(RewardMissing(trajectory=trajectory, why="it raised"))
        elif self._struck(What.REWARD_LOST):
            pass
        elif self._struck(What.REWARD_LATE):
            self.at(self.now + 1.0, self._scored, trajectory, serial, value)
        else:
            super()._scored(trajectory, serial, value)
            self._again(reward_event(trajectory, value))

    def _again(self, event: AnyEvent) -> None:
        if self._struck(What.ANSWER_DOUBLED):
            self.tell(event)

    def trained(self, learner: ModelledLearner, command: TrainGroup) -> None:
        if self._struck(What.LOSS_NOT_FINITE):
            learner.learned.pop(command.group)
            failed = GroupFailed(rank=learner.rank, group=command.group, why="loss is nan")
            self.soon(self.tell, failed)
        else:
            super().trained(learner, command)
            if self._struck(What.ANSWER_DOUBLED):
                super().trained(learner, command)

    def optimized(self) -> None:
        if not self._struck(What.STEP_NOT_FINITE):
            super().optimized()
            return
        self.close_step()
        step = self.coordinator.core.step
        for rank in sorted(self.learners):
            self.soon(self.tell, StepSkipped(rank=rank, step=step, why="gradient is nan"))

    # --- checkpoints --------------------------------------------------------------------

    def _cut(self, command: Checkpoint) -> None:
        taken = snapshot.take(self.coordinator)
        copy = msgspec.msgpack.decode(msgspec.msgpack.encode(taken), type=snapshot.Snapshot)
        self._cutting = (copy, Counter(self._trained), Counter(self._fates))
        if not self._struck(What.SAVE_HANGS):
            self.at(self.now + self.machines.save_s, self._saved, command.step)

    def _uncut(self, command: AbandonCheckpoint) -> None:
        if self._cutting is not None:
            step, self._cutting = self._cutting[0].step, None
            error = f"no answer within {command.seconds:.0f} s"
            self.soon(self.tell, Checkpointed(step=step, error=error))

    def _saved(self, step: int) -> None:
        if self.fallen or self._cutting is None:
            return
        memory = self._memory
        memory.saved, memory.trained, memory.fates = self._cutting
        self._cutting = None
        self.tell(Checkpointed(step=step))

    @property
    def excused(self) -> bool:
        """True if the run's error names something that has happened to it."""
        error = self.over.error if self.over is not None else self.fallen
        reasons = {
            "(engine.restarts)": {What.ENGINE_DIES, *DISTRUST},
            "learner rank": {What.LEARNER_DIES, What.LEARNER_HANGS},
            "checkpoints in a row failed": {What.SAVE_HANGS},
            "three steps in a row were skipped": {What.STEP_NOT_FINITE, What.LOSS_NOT_FINITE},
            "the stage died": {What.STAGE_DIES},
        }
        return any(why in error and causes & self._struck_ever for why, causes in reasons.items())

    @property
    def alone(self) -> bool:
        """Nothing is left behind by a run that says that it is done."""
        core = self.coordinator.core
        return not core.groups and not core.trajectories


def describe(event: AnyEvent) -> str:
    """A line of the log of events."""
    match event:
        case Tokens():
            chunks = " ".join(
                f"{c.trajectory}.{c.leg}+{c.count}{f'({c.finish})' if c.finish else ''}"
                for c in event.chunks
            )
            return f"frame {event.sequence} of {event.engine}.{event.epoch}: {chunks}"
        case Tick():
            return "tick"
        case RewardReady():
            return f"reward of {event.trajectory}: {event.value:g}"
        case _:
            fields = ", ".join(
                f"{name}={getattr(event, name)}"
                for name in event.__struct_fields__
                if name not in ("metrics", "latency", "parts", "pieces")
            )
            return f"{type(event).__name__} {fields}"
