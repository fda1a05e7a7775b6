"""Interfaces of the plug-ins, one a kind, and the options that some kinds share.

Every plug-in is a class with a nested `Options` Struct (checked when the
configuration is loaded) and a constructor that takes it. State that lasts is
offered by `state()` and `restore(state)`, msgpack-able, and saved in
checkpoints; a plug-in without them is taken to have none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import ClassVar, Protocol

import msgspec

from pipeline.plugins.actions import (
    Advantages,
    Allocation,
    AnyAction,
    Append,
    BatchAction,
    NoSignal,
    Plan,
    Score,
)
from pipeline.plugins.views import (
    BatchView,
    BudgetView,
    GroupView,
    OpenView,
    Outcome,
    PlanView,
    PromptView,
    Sampled,
    Turn,
)


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every plug-in's options: fields with a default and a docstring each."""

    def problems(self, group_size: int) -> Iterator[str]:
        """Complaints that types cannot express, 'option is X, but ...'; empty: fine."""
        return iter(())


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """A member has ended (finished or truncated)."""

    trajectory: int


class Rewarded(msgspec.Struct, frozen=True, tag="reward"):
    """A member's reward is known, or failed."""

    trajectory: int


class Every(msgspec.Struct, frozen=True, tag="every"):
    """A running member has passed another `wants.every` tokens."""

    trajectory: int


class Relaxed(msgspec.Struct, frozen=True, tag="relaxed"):
    """`view.size` has changed."""


class Barrier(msgspec.Struct, frozen=True, tag="barrier"):
    """The step closes: finalize now, or be deferred as surplus."""


class WeightsPublished(msgspec.Struct, frozen=True, tag="published"):
    """New weights are served."""


class Ticked(msgspec.Struct, frozen=True, tag="tick"):
    """Another second has passed, about."""


SelectorEvent = Finish | Rewarded | Every | Relaxed | Barrier | WeightsPublished | Ticked


class Wants(msgspec.Struct, frozen=True, kw_only=True):
    """The events that a selector is asked on; `Finish`, `Relaxed` and `Barrier` always come."""

    reward: bool = False
    every: int = 0  # tokens; 0: never
    published: bool = False
    tick: bool = False


class Selector(Protocol):
    wants: Wants

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]: ...


class PromptOrder(Protocol):
    """May also have a property `epochs: dict[str, float]`: passes through each source so far,
    reported with each step."""

    def plan(self, view: PlanView) -> Plan:
        """Returns up to `view.want` prompts, none of `view.outstanding`. Empty: none left."""
        ...

    def ended(self, prompt: int, how: str, rewards: Sequence[float]) -> None:
        """A group of this prompt has ended: 'trained' or 'dropped' (deferred ones come back)."""
        ...


class Budget(Protocol):
    """May also offer `ended(group: EndedView)`, called for every training group that ends, and
    `metrics() -> dict`, logged with each plan."""

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        """One allocation a prompt."""
        ...

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        """Returns (group, how many more candidates) for `idle` slots that have nothing to do, below
        the knee of their engines; `idle` at most in all. Empty: leave them idle."""
        ...


class Batch(Protocol):
    def decide(self, view: BatchView) -> Iterable[BatchAction]: ...


class Advantage(Protocol):
    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal: ...


class Reward(Protocol):
    """May also offer `score_all(samples)`, which returns one result for each (a number, a Score,
    an exception, or None for no opinion), and `complaint(sample) -> str`, asked before a run
    what is wrong with an answer of the data ('': nothing)."""

    def score(self, sample: Sampled) -> float | Score: ...


class Rollout(Protocol):
    """Asked when a turn of the model is over. May be async. A class with a true `idle` is never
    asked: responses are of one turn, and no worker process starts."""

    def turn(self, turn: Turn) -> str | Append | Awaitable[str | Append | None] | None:
        """Returns text or tokens to append, after which the model continues; None when the
        response is complete."""
        ...


class WorkerOptions(Options, frozen=True, kw_only=True):
    """Options of every plug-in that runs in worker processes: they guard these."""

    limit_s: float = 10.0
    """Seconds one call may take; then its worker is killed and the call has failed."""
    workers: int = 1
    """Worker processes; each has one call at a time."""
    fail_share: float = 0.2
    """Stop the run when more than this share of the last 50 calls failed."""
    memory_gib: float = 8.0
    """Address space of a worker, GiB; more is a MemoryError. 0: no limit."""
    cpu_s: float = 60.0
    """CPU seconds of one call, over all threads; then its worker is killed. 0: no limit."""
    file_mib: float = 100.0
    """Longest file that a worker may write, MiB; 0: no limit."""
    open_files: int = 256
    """Files that a worker may have open at once; 0: no limit."""
    processes: int = 64
    """Processes that a worker and what it has started may be at once; then they are all killed.
    0: no limit."""
    env: tuple[str, ...] = ()
    """Variables that workers see although they look like secrets: names with KEY, TOKEN, SECRET
    and the like, and values with a login in them, are taken out of their environment."""

    def problems(self, group_size: int) -> Iterator[str]:
        if not self.limit_s > 0:
            yield f"limit_s is {self.limit_s}, expected above 0"
        if self.workers < 1:
            yield f"workers is {self.workers}, expected at least 1"
        if not 0 <= self.fail_share <= 1:
            yield f"fail_share is {self.fail_share}, expected from 0 to 1"
        least = {"memory_gib": 0.25, "cpu_s": 1, "file_mib": 0, "open_files": 16, "processes": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value < low and value != 0:
                yield f"{name} is {value}, expected at least {low}, or 0 for no limit"


class RewardOptions(WorkerOptions, frozen=True, kw_only=True):
    """Options that every reward has."""

    batch: int = 1
    """Responses that are given to one call, if so many wait; `limit_s` and `cpu_s` are of the
    whole call. If it fails as a whole, each is asked about alone."""

    def problems(self, group_size: int) -> Iterator[str]:
        yield from super().problems(group_size)
        if self.batch < 1:
            yield f"batch is {self.batch}, expected at least 1"


class RolloutOptions(WorkerOptions, frozen=True, kw_only=True):
    """Options that every rollout has, but `single`."""

    stop: tuple[str, ...] = ()
    """Texts that end a turn, beside the model's own stop tokens; they stay in the response."""
    turns: int = 8
    """Calls for one response at most; a turn that ends after them ends the response."""
    turn_tokens: int = 0
    """Tokens that one turn may sample; 0: what `sampling.max_tokens` leaves. That limit is of
    the whole response, appended tokens included."""
    failure_text: str = ""
    """Appended when a call fails or takes too long, and the model continues; empty: the response
    is missing from its group, as one whose reward failed."""

    def problems(self, group_size: int) -> Iterator[str]:
        yield from super().problems(group_size)
        if "" in self.stop:
            yield "stop holds an empty text, which would end every turn at its first token"
        if self.turns < 1:
            yield f"turns is {self.turns}, expected at least 1; `rollout: single` has no calls"
        if self.turn_tokens < 0:
            yield f"turn_tokens is {self.turn_tokens}, expected at least 1, or 0 for no limit"


class Stateless:
    """Mix-in for plug-ins without options: takes them all the same."""

    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options | None = None) -> None:
        del options
