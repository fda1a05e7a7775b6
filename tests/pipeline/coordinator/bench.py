"""A coordinator driven event by event: hand-made frames, a selector that says what the test says.

`Bench` plays engines, learner and rewards as little as it must; after every
event the invariants are checked. See `world.py` for random orders of everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import (
    AnyCommand,
    AnyEvent,
    CloseStep,
    CloseVersion,
    EngineJoined,
    Generate,
    GroupTrained,
    LearnerJoined,
    OldLogprobs,
    Published,
    Report,
    RewardReady,
    Shutdown,
    StepDone,
    Tick,
    Tokens,
    TrainGroup,
    VersionClosed,
    WeightsLoaded,
)
from pipeline.coordinator.groups import Group, Trajectory
from pipeline.coordinator.state import Plugins
from pipeline.plugins.actions import Allocation, AnyAction, Finalize
from pipeline.plugins.advantages.grpo import Grpo, GrpoOptions
from pipeline.plugins.batch_rules.fifo import Fifo
from pipeline.plugins.interfaces import SelectorEvent, Wants
from pipeline.plugins.prompt_orders.sequential import Sequential
from pipeline.plugins.views import BudgetView, GroupView, OpenView, PromptView
from pipeline.simulation.invariants import check
from pipeline.wire.messages import ChunkHead, Piece
from tests.pipeline.coordinator.world import settings_of

EOS = 1
T = TypeVar("T")


class Scripted:
    """Says nothing, unless `say(group, *verbs)` has put something there for its next question."""

    def __init__(self, **wants: Any) -> None:
        wants.setdefault("tick", True)
        self.wants = Wants(**wants)
        self.seen: list[tuple[GroupView, SelectorEvent]] = []
        self._answers: dict[int, Sequence[AnyAction]] = {}

    def say(self, group: int, *actions: AnyAction) -> None:
        self._answers[group] = actions

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        self.seen.append((group, event))
        return self._answers.pop(group.id, ())


class Candidates:
    """Budget: `count` candidates for everybody."""

    def __init__(self, count: int) -> None:
        self.count = count

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        return [Allocation(candidates=self.count, max_tokens=view.max_tokens) for _ in prompts]

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        return []


@dataclass
class Wire:
    """What an engine has sent in its present epoch."""

    epoch: int = 0
    sequence: int = 0
    sampled: int = 0


class Bench:
    """One coordinator and its world, by hand. Groups and trajectories are numbered from 0."""

    def __init__(
        self,
        selector: Any = None,
        candidates: int = 3,
        plugins: Any = None,
        variants: Mapping[str, Sequence[int]] | None = None,
        solutions: Sequence[bytes] = (),
        **changes: Any,
    ) -> None:
        quiet: dict[str, Any] = dict(
            steps=1, need=1, size=2, held_out=0, eval_every=0, checkpoint_every=0
        )
        self.settings = settings_of(**{**quiet, **changes})
        self.selector: Any = selector or Scripted()
        own = Plugins(
            prompt_order=Sequential(),
            budget=Candidates(candidates),
            selector=self.selector,
            batch=Fifo(),
            advantage=Grpo(GrpoOptions(drop_equal=True)),
        )
        self.coordinator = Coordinator(
            self.settings,
            msgspec.structs.replace(own, **(plugins or {})),
            [5] * self.settings.prompts,
            variants=variants,
            solutions=solutions,
        )
        self.core = self.coordinator.core
        self.wires: dict[str, Wire] = {}
        self.group_fates: Counter[int] = Counter()
        self.now = 0.0
        self.everything: list[AnyCommand] = []

    # --- events -----------------------------------------------------------------------

    def handle(self, event: AnyEvent) -> list[AnyCommand]:
        self.now += 0.01
        commands = self.coordinator.handle(event, self.now)
        self.everything += commands
        for command in commands:
            if isinstance(command, Report) and command.what == "group":
                self.group_fates[command.fields["group"]] += 1
        check(self.coordinator, self.group_fates)
        return commands

    def begin(self, engines: int = 1, slots: int = 8, version: int = 0) -> list[AnyCommand]:
        """Everybody joins and the first step opens; the commands of all that."""
        before = len(self.everything)
        for rank in range(self.settings.ranks):
            self.handle(LearnerJoined(rank=rank))
        self.handle(Published(version=version))
        for number in range(engines):
            self.join(f"e{number}", slots)
        return self.everything[before:]

    def join(self, name: str, slots: int = 8) -> list[AnyCommand]:
        """A (new) process of this name, serving the present version."""
        old = self.wires.get(name)
        self.wires[name] = Wire(epoch=old.epoch + 1 if old else 0)
        found = self.handle(EngineJoined(engine=name, epoch=self.wires[name].epoch, slots=slots))
        return found + self.serve(name)

    def serve(self, name: str = "e0", gap: float = 0.0) -> list[AnyCommand]:
        return self.handle(WeightsLoaded(engine=name, version=self.core.version, gap=gap))

    def chunk(
        self, trajectory: int, count: int = 0, finish: str = "", last: int = 5, **other: int
    ) -> tuple[ChunkHead, list[int]]:
        """New tokens of a trajectory, by default right after those held, of its current leg."""
        known = self.core.trajectories.get(trajectory)
        head = ChunkHead(
            trajectory=trajectory,
            leg=other.get("leg", known.leg if known else 0),
            offset=other.get("offset", known.held if known else 0),
            count=count,
            version=other.get("version", self.core.version),
            finish=finish,
        )
        numbers = [5] * count
        if numbers:
            numbers[-1] = EOS if finish == "stop" else last
        return head, numbers

    def frame(
        self, *chunks: tuple[ChunkHead, list[int]], engine: str = "e0", **other: int
    ) -> Tokens:
        """The next frame of an engine, of these chunks."""
        wire = self.wires[engine]
        tokens = [token for _, numbers in chunks for token in numbers]
        wire.sampled += len(tokens)
        wire.sequence += 1
        return Tokens(
            engine=engine,
            epoch=other.get("epoch", wire.epoch),
            sequence=other.get("sequence", wire.sequence - 1),
            sampled=other.get("sampled", wire.sampled),
            chunks=tuple(head for head, _ in chunks),
            tokens=np.array(tokens, "<i4").tobytes(),
            logprobs=np.full(len(tokens), -0.5, "<f4").tobytes(),
        )

    def tokens(
        self, trajectory: int, count: int = 0, finish: str = "", engine: str = "e0", **other: int
    ) -> list[AnyCommand]:
        """One frame of one chunk."""
        made = self.chunk(trajectory, count, finish, **other)
        return self.handle(self.frame(made, engine=engine))

    def ask(self, group: int, *actions: AnyAction) -> list[AnyCommand]:
        """Have the selector say this now."""
        self.selector.say(group, *actions)
        return self.handle(Tick())

    def reward(self, trajectory: int, value: float) -> list[AnyCommand]:
        return self.handle(RewardReady(trajectory=trajectory, value=value))

    # --- whole stretches --------------------------------------------------------------

    def train_one(self, group: int) -> list[AnyCommand]:
        """End two members of a group with different rewards and finalize it."""
        first, second = [m.id for m in self.core.groups[group].members][:2]
        self.tokens(first, 3, "stop")
        before = len(self.everything)
        self.selector.say(group, Finalize((first, second)))  # all may have ended then
        self.tokens(second, 4, "stop")
        self.reward(first, 1.0)
        self.reward(second, 0.0)
        return self.everything[before:]

    def close_version(self, **answers: float) -> list[AnyCommand]:
        """Every rank that was asked to closes its version; all old logprobs are `nats` (-1)."""
        before = len(self.everything)
        asked = [c for c in only(self.everything, CloseVersion) if c.version == self.core.version]
        for order in asked:
            pieces = tuple(
                piece_of(chunk.trajectory, [answers.get("nats", -1.0)] * (len(chunk.tokens) // 4))
                for chunk in order.chunks
            )
            self.handle(OldLogprobs(rank=order.rank, version=order.version, pieces=pieces))
            self.handle(VersionClosed(rank=order.rank, version=order.version))
        return self.everything[before:]

    def learn(self, commands: Iterable[AnyCommand]) -> list[AnyCommand]:
        """The learner answers every TrainGroup, and CloseStep with the next version."""
        before = len(self.everything)
        for train in only(commands, TrainGroup):
            tokens = sum(m.weight * len(m.response) / 4 for m in train.members)
            self.handle(GroupTrained(rank=train.rank, group=train.group, tokens=tokens))
        for finish in only(self.everything[before:], CloseStep):
            for rank in range(self.settings.ranks):
                version = finish.step + 1
                self.handle(StepDone(rank=rank, step=finish.step, version=version))
        return self.everything[before:]

    # --- looking ----------------------------------------------------------------------

    def member(self, trajectory: int) -> Trajectory:
        return self.core.trajectories[trajectory]

    def group(self, group: int) -> Group:
        return self.core.groups[group]

    @property
    def accounts(self) -> dict[str, int]:
        """Accounts of the ledger that hold anything."""
        return {name: tokens for name, tokens in self.core.ledger.accounts.items() if tokens}

    def fate(self, group: int) -> tuple[str, str]:
        """How a group ended, and why."""
        [fields] = [
            c.fields
            for c in self.everything
            if isinstance(c, Report) and c.what == "group" and c.fields["group"] == group
        ]
        return fields["fate"], fields["why"]

    def warnings(self) -> list[str]:
        reports = only(self.everything, Report)
        return [r.fields["text"] for r in reports if r.what == "warning"]

    @property
    def over(self) -> Shutdown | None:
        found = only(self.everything, Shutdown)
        return found[-1] if found else None


def piece_of(
    trajectory: int, logprobs: Sequence[float], first: int = 0, entropies: Sequence[float] = ()
) -> Piece:
    """What a rank says of these tokens."""
    numbers = (np.array(values, "<f4").tobytes() for values in (logprobs, entropies))
    return Piece(trajectory, first, *numbers)


def only(commands: Iterable[AnyCommand], kind: type[T]) -> list[T]:
    """Those commands that are of this kind."""
    return [command for command in commands if isinstance(command, kind)]


def placed(commands: Iterable[AnyCommand]) -> list[tuple[int, int]]:
    """(trajectory, leg) of every Place, in order."""
    return [(c.trajectory, c.leg) for c in only(commands, Generate)]
