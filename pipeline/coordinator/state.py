"""State that the parts of the coordinator share: settings, plug-ins, live groups, the outbox.

No socket, no clock (`now` is set by the event at hand), no randomness that
does not follow from the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import msgspec

from pipeline.coordinator.events import AbortLegs, CancelEnvironmentCall, Command, Report
from pipeline.coordinator.group_index import GroupIndex
from pipeline.coordinator.groups import Group, GroupState, Trajectory
from pipeline.coordinator.length_forecast import LengthForecast
from pipeline.coordinator.run_state import RunState
from pipeline.coordinator.running_stats import RunningStatistics
from pipeline.coordinator.staleness import DueGroups, steps_ahead
from pipeline.coordinator.step_stats import StepStats
from pipeline.coordinator.timeouts import Timeouts
from pipeline.coordinator.token_ledger import TokenLedger
from pipeline.coordinator.weight_proofs import WeightProofs
from pipeline.hardware.latency_model import LatencyModel
from pipeline.plugins.interfaces import (
    Advantage,
    Batch,
    Budget,
    PromptOrder,
    Selector,
    Wants,
    wants_of,
)
from pipeline.plugins.variants import column_and_share, tokens_of
from pipeline.plugins.views import EvalSet, SourceView
from pipeline.wire.fields import PacedSteps


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The coordinator's part of the configuration, in numbers."""

    seed: int
    steps: int
    need: int  # groups of a step
    reserve: int  # groups opened beyond those
    keep: int = 0  # groups kept after they were trained on
    keep_versions: int = 4  # versions that a token of those may be behind the newest weights
    hold: int = 0  # groups held, or that may come to be, at most; 0: any number
    tries: float  # at most tries x need groups are opened for a step
    size: int  # M
    max_tokens: int
    ranks: int  # 0: nothing is trained
    engines: int = 1  # by config; more may join
    overlap: str  # token | group | off
    stream: bool = False  # tokens for the learner's cached forward
    prompts: int  # in the training set
    sources: tuple[SourceView, ...] = ()  # of it, where there are several
    held_out: int  # prompts evaluated on
    held_out_tags: tuple[str, ...] = ()  # kind of each, '' for none; () where none has one
    eval_every: int
    eval_samples: int
    eval_sets: tuple[EvalSet, ...] = ()  # (): all held-out prompts are one
    eval_max_tokens: int = 0  # of a response in evaluations; 0: max_tokens
    eval_greedy: bool = False
    eval_correct: float = 1.0  # a reward from which on a response is correct
    eval_best: str = ""  # figure whose best step keeps its checkpoint
    checkpoint_every: int
    stop_tokens: frozenset[int]
    log_wait_s: float
    limits: Timeouts = Timeouts()
    max_staleness: int = 0  # k, versions
    stale: str = "wait"  # wait | drop
    audit_every: int = 0  # steps between measurements of selection bias
    audit_alarm: float = 0.0  # mean absolute change of an advantage to warn above; 0: never
    gap_limit: float  # probe difference (nats) above which an engine is not admitted
    group_reward: bool = False  # training rewards are over whole groups, once they are chosen
    paced: str = ""  # emulated pace of engines, learner and weights, in words; "": none
    knee: int = 0  # running sequences of an engine up to which it is topped up; 0: measured
    placement_order: str = "oldest"  # oldest | longest
    kv_tokens: int = 0  # of an engine's cache, within which predicted peaks stay; 0: slots alone
    turns: int = 0  # calls of the environment for one response; 0: a response is one turn
    turn_tokens: int = 0  # that one turn may sample; 0: no limit of its own
    rollouts_every: int = 0  # steps between those whose responses are kept; 0: none are
    most_candidates: int = 1024  # of one group, a guard against selectors that never stop


class Plugins(msgspec.Struct, frozen=True, kw_only=True):
    """The plug-ins that decide in this process."""

    prompt_order: PromptOrder
    budget: Budget
    selector: Selector
    batch: Batch
    advantage: Advantage


class PluginFault(Exception):
    """A plug-in asked for what cannot be; names the plug-in, the group and the action."""


@contextmanager
def plugin_guard(plugin: object, about: str, group: int | None = None) -> Generator[None]:
    """Turns whatever a plug-in raises into a PluginFault that names it.

    Args:
        about: the kind of plug-in.
        group: the group where there is one.
    """
    try:
        yield
    except Exception as error:
        about = about if group is None else f"{about}, group {group}"
        name = type(plugin).__name__
        raise PluginFault(f"{about}: {name} raised {type(error).__name__}: {error}") from error


class CoordinatorState:
    """Live state. Groups and trajectories leave it when they have ended."""

    def __init__(
        self,
        settings: Settings,
        plugins: Plugins,
        prompt_tokens: Sequence[int],
        tags: Sequence[str] = (),
        variants: Mapping[str, Sequence[int]] | None = None,
        solutions: Sequence[bytes] = (),
    ) -> None:
        self.settings = settings
        self.plugins = plugins
        self.prompt_tokens = prompt_tokens  # length of each training prompt
        self._tags = tags  # kind of each, or nothing
        self.variants = variants or {}  # column of the data -> its tokens, for each prompt
        self.solutions = solutions  # int32, the data's response to each prompt, or nothing
        self.latency = LatencyModel()  # of all engines: they are of one kind
        self.ledger = TokenLedger()
        self.statistics = RunningStatistics()
        self.forecast = LengthForecast()
        self.groups: dict[int, Group] = {}
        self.group_index = GroupIndex()  # of the training groups among them
        self.due_groups = DueGroups(self.group_index, settings.max_staleness)
        self.trajectories: dict[int, Trajectory] = {}
        self.environment_calls: dict[
            int, float
        ] = {}  # trajectory -> when its environment was asked
        self.next_group = 0
        self.next_trajectory = 0
        self.step = 0  # steps done
        self.version = -1  # published by the learner; -1: none yet
        self.now = 0.0
        self.run = RunState()
        self.stats = StepStats()  # of the open step
        self.weight_proofs = WeightProofs()
        self.paced = PacedSteps()  # of all engines, up to their newest loads
        self.weights_move = False  # CloseStep is out: ranks are about to forget what they streamed
        self.rewards_moved = False  # a reward has come since the budget was asked for more
        self.needs_update = False  # the batch rule is to be asked, or the close to be tried
        self.out: list[Command] = []
        self._endings: dict[str, list[tuple[int, int]]] = {}

    @property
    def wants(self) -> Wants:
        """What the selector says that it needs."""
        return wants_of(self.plugins.selector)

    @property
    def ahead(self) -> int:
        """Steps that generation may be ahead of the open one."""
        settings = self.settings
        return steps_ahead(settings.max_staleness, self.step, settings.steps)

    def emit(self, command: Command) -> None:
        self.out.append(command)

    def report(self, what: str, **fields: object) -> None:
        self.out.append(Report(what=what, fields={"step": self.step, **fields}))

    def cancel_environment_call(self, trajectory: int) -> None:
        """Cancel the call to its environment, if one is waited for."""
        if self.environment_calls.pop(trajectory, None) is not None:
            self.emit(CancelEnvironmentCall(trajectory=trajectory))

    def end_on_engine(self, engine: str, trajectory: int, leg: int) -> None:
        """Have the engine stop a leg; gathered into one message an engine and event."""
        self._endings.setdefault(engine, []).append((trajectory, leg))

    def take_out(self) -> list[Command]:
        """Everything emitted since the last call."""
        for engine, legs in self._endings.items():
            self.out.append(AbortLegs(engine=engine, legs=tuple(legs)))
        self._endings = {}
        out, self.out = self.out, []
        return out

    @property
    def tags(self) -> Sequence[str]:
        """The kind of each training prompt; () if the data set names none."""
        return self._tags

    def tag(self, prompt: int) -> str:
        """The kind of a training prompt, '' if its data set names none."""
        return self._tags[prompt] if self._tags else ""

    def is_training(self, trajectory: Trajectory) -> bool:
        """True for a response of training, False for one of an evaluation."""
        return self.groups[trajectory.group].kind == "train"

    def variant_tokens(self, prompt: int, variant: str) -> int:
        """Tokens that a variant puts behind a training prompt. Raises ValueError if there is no
        such variant."""
        if not variant:
            return 0
        column, share = column_and_share(variant, self.variants)
        return tokens_of(share, self.variants[column][prompt])

    @property
    def room_to_hold(self) -> int:
        """Groups that may be opened although their selector may hold them all (`step.hold`)."""
        settings = self.settings
        return settings.hold - self.group_index.small if settings.hold else settings.prompts

    def enter(self, group: Group) -> None:
        """A group, new or of a checkpoint, is live from now on."""
        self.groups[group.id] = group
        self.group_index.update(group)
        self.group_index.hold(group)

    def advance(self, group: Group, state: GroupState, why: str = "") -> None:
        """Move a group along its table. Raises IllegalTransition and changes nothing."""
        group.advance(state, self.now, why)
        if not group.is_open:
            group.held = False
        self.group_index.update(group)
        if state is GroupState.READY:
            self.due_groups.note(group, self.version)

    def hold(self, group: Group, held: bool) -> None:
        """Note whether `Hold` was the selector's last word on a group."""
        if group.held != held:
            group.held = held
            self.group_index.hold(group)
            self.due_groups.note(group, self.version)

    def train_groups(self, *states: GroupState) -> list[Group]:
        """Live training groups in these states, oldest first."""
        return self.group_index.groups(*states)

    def seed_of(self, group: Group, trajectory: Trajectory) -> int:
        """A leg's own seed: resumed with the first one it would draw the same numbers again."""
        key = (
            f"{self.settings.seed}/{group.kind}/{group.step if group.kind == 'eval' else 0}"
            f"/{group.prompt}/{group.id}/{group.attempt}/{trajectory.member}/{trajectory.leg}"
        )
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 2
