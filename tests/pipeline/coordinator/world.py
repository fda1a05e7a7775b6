"""A world without sockets for the coordinator: fake engines, learner and rewards.

`World(seed).run()` plays random orders of everything that may happen, with
faults while `chaos` lasts, and checks the invariants after every event.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import (
    AbandonCheckpoint,
    AbortLegs,
    AnyCommand,
    AnyEvent,
    CallEnvironment,
    CancelEnvironmentCall,
    CancelReward,
    Checkpoint,
    Checkpointed,
    CloseStep,
    CloseVersion,
    DropStream,
    EngineJoined,
    EngineLost,
    ForgetGroup,
    Generate,
    GroupFailed,
    GroupTrained,
    Halt,
    KeepRollouts,
    LearnerJoined,
    LoadWeights,
    OldLogprobs,
    Published,
    Report,
    RequestReward,
    Restart,
    RewardMissing,
    RewardReady,
    Shutdown,
    StepDone,
    StepSkipped,
    StreamTokens,
    Tick,
    Tokens,
    TrainGroup,
    TurnAnswered,
    TurnFailed,
    VersionClosed,
    WeightsFailed,
    WeightsLoaded,
)
from pipeline.coordinator.groups import Trajectory
from pipeline.coordinator.old_logprobs import token_versions
from pipeline.coordinator.state import Plugins, Settings
from pipeline.plugins import registry
from pipeline.simulation.invariants import check
from pipeline.wire.messages import ChunkHead, Piece, TrainMember

EOS = 1
APPENDED = 7  # by an environment: no engine samples it


def settings_of(**changes: Any) -> Settings:
    base: dict[str, Any] = dict(
        seed=0,
        steps=3,
        need=3,
        reserve=0,
        tries=6.0,
        size=4,
        max_tokens=24,
        ranks=1,
        overlap="group",
        prompts=50,
        held_out=3,
        eval_every=2,
        eval_samples=2,
        checkpoint_every=2,
        stop_tokens=frozenset({EOS}),
        log_wait_s=20.0,
        gap_limit=1e-3,
    )
    return Settings(**{**base, **changes})


def plugins_of(
    selector: str = "first_m",
    redundancy: float = 1.5,
    seed: int = 0,
    top_up: str = "none",
    **options: Any,
) -> Plugins:
    def make(kind: str, name: str, **given: Any) -> Any:
        cls = registry.find_plugin(kind, name)
        extra = {"seed": seed} if kind == "prompt_order" else {}
        return cls(registry.options_type(cls)(**given), **extra)

    return Plugins(
        prompt_order=make("prompt_order", "shuffled"),
        budget=make("budget", "uniform", redundancy=redundancy, top_up=top_up),
        selector=make("selector", selector, **options),
        batch=make("batch", "fifo"),
        advantage=make("advantage", "grpo", drop_equal=True),
    )


@dataclass
class FakeEngine:
    name: str
    epoch: int
    slots: int
    version: int = -1
    sequence: int = 0
    sampled: int = 0
    legs: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # -> [offset, left]
    ending: set[tuple[int, int]] = field(default_factory=set)
    outbox: deque[Tokens] = field(default_factory=deque)

    def place(self, command: Generate, rng: random.Random) -> None:
        assert self.version >= 0, "a request before any weights"
        held = len(command.prefix) // 4
        assert (command.trajectory, command.leg) not in self.legs
        self.legs[command.trajectory, command.leg] = [held, command.max_tokens]
        assert len(self.legs) <= self.slots, "a slot is oversubscribed"
        assert command.max_tokens >= 1

    def sample(self, rng: random.Random) -> None:
        """One flush: some legs grow, some end."""
        chunks: list[ChunkHead] = []
        tokens: list[int] = []
        for leg in list(self.legs):
            if leg in self.ending:
                offset, _ = self.legs.pop(leg)
                extra = rng.randint(0, 2)  # tokens sampled before the abort arrived
                tokens += [5] * extra
                chunks.append(ChunkHead(*leg, offset, extra, self.version, "abort"))
                self.ending.discard(leg)
            elif rng.random() < 0.5:
                offset, left = self.legs[leg]
                count = rng.randint(1, 6)
                finish = ""
                if rng.random() < 0.25:
                    finish = "stop"
                if count >= left:
                    count = left
                    finish = "stop" if finish else "length"
                tokens += [5] * (count - 1) + [EOS if finish == "stop" else 5]
                chunks.append(ChunkHead(*leg, offset, count, self.version, finish))
                if finish:
                    del self.legs[leg]
                else:
                    self.legs[leg] = [offset + count, left - count]
        if not chunks and self.outbox:
            return  # a heartbeat goes out when nothing else does: it never queues up
        self.sampled += len(tokens)
        self.outbox.append(
            Tokens(
                engine=self.name,
                epoch=self.epoch,
                sequence=self.sequence,
                sampled=self.sampled,
                chunks=tuple(chunks),
                tokens=np.array(tokens, "<i4").tobytes(),
                logprobs=np.full(len(tokens), -0.5, "<f4").tobytes(),
            )
        )
        self.sequence += 1


def old_of(command: CloseVersion) -> tuple[Piece, ...]:
    """What a rank would answer: here -1 - version nats for every token."""
    return tuple(
        Piece(
            chunk.trajectory,
            0,
            np.full(len(chunk.tokens) // 4, -1 - command.version, "<f4").tobytes(),
        )
        for chunk in command.chunks
    )


class World:
    """Drives one coordinator; `faults` is the probability of one per action."""

    def __init__(
        self,
        seed: int,
        settings: Settings | None = None,
        plugins: Plugins | None = None,
        engines: int = 2,
        slots: int = 6,
        faults: float = 0.05,
        reward_faults: float = 0.05,
        learner_faults: float = 0.0,
        before: World | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.settings = settings or settings_of(seed=seed)
        self.coordinator = Coordinator(
            self.settings, plugins or plugins_of(seed=seed), [5] * self.settings.prompts
        )
        self.faults, self.reward_faults = faults, reward_faults
        self.learner_faults = learner_faults
        self.now = 0.0
        self.log: list[AnyEvent] = []
        self.commands: list[AnyCommand] = []
        self.rewards: dict[int, RequestReward] = {}
        self.questions: dict[int, CallEnvironment] = {}
        self.learner: dict[int, list[Any]] = {r: [] for r in range(self.settings.ranks)}
        self.version = 0
        # what happened after the cut that a run goes on from has not happened to it
        at_cut = before.at_cut if before else (Counter[int](), Counter[int]())
        self.trained, self.group_fates = Counter(at_cut[0]), Counter(at_cut[1])
        self.at_cut = at_cut
        self.reports: list[Report] = []
        self.loads: list[tuple[str, int]] = []
        self.cuts: list[snapshot.Snapshot] = []
        self.over: Shutdown | None = None
        self.engines = {f"e{i}": FakeEngine(f"e{i}", epoch=0, slots=slots) for i in range(engines)}
        self.away: set[str] = set()

    # --- events and commands ---------------------------------------------------------

    def tell(self, event: AnyEvent) -> None:
        self.now += 0.01
        self.log.append(event)
        commands = self.coordinator.handle(event, self.now)
        self.commands += commands
        for command in commands:
            self.carry_out(command)
        self.check()

    def carry_out(self, command: AnyCommand) -> None:
        match command:
            case Generate():
                self.engines[command.engine].place(command, self.rng)
            case AbortLegs():
                engine = self.engines.get(command.engine)
                if engine is not None:
                    engine.ending |= {leg for leg in command.legs if leg in engine.legs}
            case RequestReward():
                self.rewards[command.trajectory] = command
            case CancelReward():
                self.rewards.pop(command.trajectory, None)
            case CallEnvironment():
                self.questions[command.trajectory] = command
            case CancelEnvironmentCall():
                self.questions.pop(command.trajectory, None)
            case TrainGroup():
                self._assert_young(command)
                self.learner[command.rank].append(command)
            case CloseVersion():
                self.learner[command.rank].append(command)
            case ForgetGroup():
                queue = self.learner[command.rank]
                queue[:] = [c for c in queue if getattr(c, "group", None) != command.group]
            case CloseStep():
                for queue in self.learner.values():
                    queue.append(command)
            case LoadWeights():
                self.loads.append((command.engine, command.version))
            case Checkpoint():
                self.cuts.append(snapshot.take(self.coordinator))
                self.pending_cut = command.step
                self.at_cut = (Counter(self.trained), Counter(self.group_fates))
            case KeepRollouts():
                pass  # for people to read
            case Restart():
                if command.peer in self.engines and command.peer not in self.away:
                    self.kill(command.peer, tell=False)
            case Report(what="group", fields=fields):
                self.group_fates[fields["group"]] += 1
                if fields["fate"] == "trained":
                    self.trained[fields["group"]] += 1
                self.reports.append(command)
            case Report():
                self.reports.append(command)
            case Shutdown():
                self.over = command
            case StreamTokens() | DropStream() | AbandonCheckpoint():
                pass  # no cut lasts here; hints are read from `commands` by the tests of hints

    def _assert_young(self, command: TrainGroup) -> None:
        core = self.coordinator.core
        group = core.groups[command.group]
        if group.replay:  # its members are gone: they are what is kept of them
            assert group.replay.version >= core.version - self.settings.keep_versions
            return
        for member in command.members:
            response = np.frombuffer(member.response, "<i4")
            appended = [i for first, count in member.appended for i in range(first, first + count)]
            assert np.flatnonzero(response == APPENDED).tolist() == appended
            found = group.member(member.trajectory)
            assert found is not None
            oldest = core.version - self.settings.max_staleness
            assert min(found.versions) >= oldest, "a token is too old to be trained on"
            self._assert_old(member, found, core.version)

    @staticmethod
    def _assert_old(member: TrainMember, found: Trajectory, newest: int) -> None:
        """Stale tokens alone have an old logprob: of their own version, or the engine's."""
        sampled_by, old = token_versions(found), np.full(found.held, np.nan)
        if member.old:
            old = np.frombuffer(member.old, "<f4").astype(float)
        stale = (sampled_by != newest) & (sampled_by >= 0)
        assert (np.isfinite(old) == stale).all()
        assert all(
            value in (-0.5, -version - 1)
            for value, version in zip(old[stale], sampled_by[stale], strict=True)
        )

    def kill(self, name: str, tell: bool = True) -> None:
        self.away.add(name)
        self.engines[name].outbox.clear()
        if tell:
            self.tell(EngineLost(engine=name, why="killed"))

    def join(self, name: str) -> None:
        old = self.engines[name]
        self.away.discard(name)
        self.loads = [load for load in self.loads if load[0] != name]
        self.engines[name] = FakeEngine(name, epoch=old.epoch + 1, slots=old.slots)
        self.tell(EngineJoined(engine=name, epoch=old.epoch + 1, slots=old.slots))

    # --- what may happen ---------------------------------------------------------------

    def start(self, version: int = 0) -> None:
        self.version = version
        opening: list[AnyEvent] = [LearnerJoined(rank=r) for r in range(self.settings.ranks)]
        opening.append(Published(version=version))
        opening += [
            EngineJoined(engine=e.name, epoch=0, slots=e.slots) for e in self.engines.values()
        ]
        self.rng.shuffle(opening)
        for event in opening:
            self.tell(event)

    def act(self, chaos: bool) -> None:
        rng = self.rng
        choices: list[str] = ["tick"] + ["sample", "frame"] * 3
        choices += ["reward"] * 2 if self.rewards else []
        choices += ["environment"] * 2 if self.questions else []
        choices += ["learn"] * 2 if any(self.learner.values()) else []
        choices += ["load"] if self.loads else []
        choices += ["join"] if self.away else []
        choices += ["checkpointed"] if getattr(self, "pending_cut", None) is not None else []
        if chaos and rng.random() < self.faults:
            choices = ["kill", "drop", "double", "refuse"]
        getattr(self, "_" + rng.choice(choices))(chaos)

    def _here(self) -> list[FakeEngine]:
        return [e for n, e in self.engines.items() if n not in self.away]

    def _tick(self, chaos: bool) -> None:
        self.tell(Tick())

    def _sample(self, chaos: bool) -> None:
        for engine in self._here():
            if engine.version >= 0 and self.rng.random() < 0.7:
                engine.sample(self.rng)

    def _frame(self, chaos: bool) -> None:
        ready = [e for e in self._here() if e.outbox]
        if ready:
            self.tell(self.rng.choice(ready).outbox.popleft())

    def _reward(self, chaos: bool) -> None:
        trajectory = self.rng.choice(list(self.rewards))
        del self.rewards[trajectory]
        if chaos and self.rng.random() < self.reward_faults:
            self.tell(RewardMissing(trajectory=trajectory, why="it raised"))
        else:
            self.tell(RewardReady(trajectory=trajectory, value=float(self.rng.random() < 0.5)))

    def _environment(self, chaos: bool) -> None:
        asked = self.questions.pop(self.rng.choice(list(self.questions)))
        trajectory, turn = asked.trajectory, asked.turn
        if chaos and self.rng.random() < self.reward_faults:
            self.tell(TurnFailed(trajectory=trajectory, turn=turn, why="it raised"))
        elif self.rng.random() < 0.3:
            self.tell(TurnAnswered(trajectory=trajectory, turn=turn, over=True))
        else:
            tokens = np.full(self.rng.randint(0, 4), APPENDED, "<i4").tobytes()
            self.tell(TurnAnswered(trajectory=trajectory, turn=turn, over=False, tokens=tokens))

    def _learn(self, chaos: bool) -> None:
        rank = self.rng.choice([r for r, queue in self.learner.items() if queue])
        command = self.learner[rank][0]
        if isinstance(command, TrainGroup):
            self.learner[rank].pop(0)
            assert all(m.response for m in command.members)
            if chaos and self.rng.random() < self.learner_faults:
                self.tell(GroupFailed(rank=rank, group=command.group, why="loss is nan"))
                return
            tokens = sum(m.weight * m.sampled_tokens for m in command.members)
            self.tell(GroupTrained(rank=rank, group=command.group, tokens=tokens))
            return
        if isinstance(command, CloseVersion):
            self.learner[rank].pop(0)
            assert command.version == self.version, "the rank has other weights"
            if not (chaos and self.rng.random() < self.learner_faults):
                self.tell(OldLogprobs(rank=rank, version=self.version, pieces=old_of(command)))
            self.tell(VersionClosed(rank=rank, version=command.version))
            return
        if all(queue and isinstance(queue[0], CloseStep) for queue in self.learner.values()):
            reject = chaos and self.rng.random() < self.learner_faults
            self.version += not reject
            for each in self.learner:
                self.learner[each].pop(0)
            for each in self.learner:
                self.tell(
                    StepSkipped(rank=each, step=command.step, why="gradient is nan")
                    if reject
                    else StepDone(rank=each, step=command.step, version=self.version)
                )

    def _load(self, chaos: bool) -> None:
        name, version = self.loads.pop(0)
        if name not in self.away:
            engine = self.engines[name]
            engine.version = version
            self.tell(WeightsLoaded(engine=name, version=version, gap=1e-6))

    def _join(self, chaos: bool) -> None:
        self.join(self.rng.choice(sorted(self.away)))

    def _checkpointed(self, chaos: bool) -> None:
        step, self.pending_cut = self.pending_cut, None
        assert step is not None
        self.tell(Checkpointed(step=step))

    def _kill(self, chaos: bool) -> None:
        here = self._here()
        if here:
            self.kill(self.rng.choice(here).name)

    def _drop(self, chaos: bool) -> None:
        ready = [e for e in self._here() if e.outbox]
        if ready:
            self.rng.choice(ready).outbox.popleft()

    def _double(self, chaos: bool) -> None:
        ready = [e for e in self._here() if e.outbox]
        if ready:
            frame = self.rng.choice(ready).outbox[0]
            self.tell(frame)
            if self.engines[frame.engine].outbox and self.engines[frame.engine].outbox[0] is frame:
                self.engines[frame.engine].outbox.popleft()
            self.tell(frame)

    def _refuse(self, chaos: bool) -> None:
        if self.loads:
            name, version = self.loads.pop(0)
            if name not in self.away:
                self.tell(WeightsFailed(engine=name, version=version, why="checksum"))

    # --- the run and its invariants ------------------------------------------------------

    def run(self, chaos_actions: int = 400, limit: int = 20_000, halt_at: int = -1) -> World:
        """To the end. Raises AssertionError if something never ends."""
        for action in range(limit):
            if self.over is not None:
                return self
            if action == halt_at:
                self.tell(Halt())
            self.act(chaos=action < chaos_actions)
        lines = [f"phase {self.coordinator.run.phase}"]
        lines += [f"group {g.id} {g.state}" for g in self.coordinator.core.groups.values()]
        raise AssertionError("the run never ends:\n" + "\n".join(lines))

    def check(self) -> None:
        check(self.coordinator, self.group_fates)


def ran(seed: int, changes: dict[str, Any], **plugins: Any) -> World:
    """A run to its end, its books checked after every event."""
    settings = settings_of(seed=seed, held_out=0, eval_every=0, **changes)
    own = msgspec.structs.replace(plugins_of(seed=seed), **plugins)
    world = World(seed, settings, own, faults=0.05, reward_faults=0.0)
    world.start()
    world.run()
    assert world.over is not None and world.over.error == ""
    core = world.coordinator.core
    assert not core.groups and not core.trajectories, "something was left behind"
    return world
