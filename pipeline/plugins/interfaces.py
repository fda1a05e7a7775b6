"""Interfaces of the plug-ins, one a kind, and the options that some kinds share.

Every plug-in is a class with a nested `Options` Struct (checked when the
configuration is loaded) and a constructor that takes it. State that lasts is
offered by `state()` and `restore(state)`, msgpack-able, and saved in
checkpoints; a plug-in without them is taken to have none.

Every kind that decides in the stage (order, budget, selector, batch rule, advantage) may offer
`ended(group: EndedView)`: it is called for every training group that ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import Annotated, ClassVar, Protocol

import msgspec
from msgspec import Meta

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
from pipeline.plugins.ranges import NonNegativeInt, PositiveInt
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

_STOP = "not empty: an empty text would end every turn at its first token"
_TURNS = "at least 1; `environment: single` has no calls"


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every plug-in's options: fields with a type that says the range
    (`pipeline.plugins.ranges`), a default and a docstring each."""

    def problems(self, group_size: int) -> Iterator[str]:
        """Complaints that no field's type can express, 'option is X, but ...'; empty: fine."""
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
    entropy: bool = False
    """Needs `MemberView.entropy`: no event of its own, but learner ranks compute it as tokens
    are streamed to them (`learner.overlap: token`, ZeRO 0 to 2)."""
    parts: tuple[str, ...] = ()
    """Parts of the reward by which it decides: a run in which no reward has one of them says so."""
    stored: int = 0
    """Prompts of which the newest success that was trained on is kept, for `Include`; of more, the
    newest. 0: none. Checkpoints hold 8 bytes for each token of them."""
    right: float = 1.0
    """Reward from which on a response is a success that is kept."""
    solution: bool = False
    """Includes solutions of the data: a run without `data.solution` is refused."""


_NOTHING = Wants()


def wants_of(selector: object) -> Wants:
    """Returns what a selector says that it needs; nothing, if it says nothing or no `Wants`."""
    found = getattr(selector, "wants", None)
    return found if isinstance(found, Wants) else _NOTHING


class Selector(Protocol):
    """May also have `waits_for(candidates: int, size: int) -> int`: how many of a group's
    candidates must have ended before the group no longer holds up its step, so that a budget can
    predict how long a step takes. Without it a group is taken to wait for all of them. It and a
    budget may also have `variants`, columns of the data that they will name (`Sample.variant`):
    they are looked up before a run."""

    wants: Wants

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]: ...


class PromptOrder(Protocol):
    """Its constructor is given `seed=` beside the options. May also have a property
    `epochs: dict[str, float]`: passes through each source so far, reported with each step."""

    def plan(self, view: PlanView) -> Plan:
        """Returns up to `view.want` prompts, none of `view.outstanding`. Empty: none left."""
        ...


class Budget(Protocol):
    """May also have a true `on_rewards`: then `top_up` is asked whenever a reward has come, also
    for no idle slot, and what it gives may be more than are idle. May also offer
    `metrics() -> dict`, figures of the last plan, logged with it and with the step. Of these
    `total` (candidates), `known` and `unseen` (prompts) are summed over a step's plans; of the
    others the first plan's stands. `generation_predicted_s`, the seconds in which it expects the
    step to be generated, is logged beside the measured `generation_s`."""

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
    """May also offer `of_step(groups: Sequence[GroupOutcome]) -> Sequence[Advantages]`, asked once
    for all groups that a step trains on, whose answers replace the earlier ones. Groups then wait
    for each other: none is trained on before the last one is in."""

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        """Returns one for each member, for good: it is asked once a group. (What-if questions go
        to copies of the plug-in.)"""
        ...


class Reward(Protocol):
    """May also offer `score_all(samples)`, which returns one result for each (a number, a Score,
    an exception, or None for no opinion), and `complaint(sample) -> str`, asked before a run
    what is wrong with an answer of the data ('': nothing). With `score_group(samples)`, which
    returns the same as `score_all`, rewards of training are over a group: it is asked once, about
    the members that the selector has chosen, which therefore cannot decide by rewards. `score` is
    then for evaluations alone."""

    def score(self, sample: Sampled) -> float | Score: ...


class Environment(Protocol):
    """Asked when a turn of the model is over. May be async. A class with a true `idle` is never
    asked: responses are of one turn, and no worker process starts."""

    def turn(self, turn: Turn) -> str | Append | Awaitable[str | Append | None] | None:
        """Returns text or tokens to append, after which the model continues; None when the
        response is complete."""
        ...


class WorkerSettings(Protocol):
    """What an option may have to agree with in the section `workers`."""

    @property
    def limit_s(self) -> float: ...

    @property
    def env(self) -> tuple[str, ...]: ...


class WorkerOptions(Options, frozen=True, kw_only=True):
    """Options of every plug-in that runs in worker processes, which `workers` guards."""

    def worker_problems(self, workers: WorkerSettings) -> Iterator[str]:
        """Complaints about options that do not fit the section `workers`, as of `problems`."""
        return iter(())


class RewardOptions(WorkerOptions, frozen=True, kw_only=True):
    """Options that every reward has."""

    batch: PositiveInt = 1
    """Responses that are given to one call, if so many wait; `workers.limit_s` and `cpu_s` are of
    the whole call. If it fails as a whole, each is asked about alone."""


class EnvironmentOptions(WorkerOptions, frozen=True, kw_only=True):
    """Options that every environment has, but `single`."""

    stop: tuple[Annotated[str, Meta(min_length=1, description=_STOP)], ...] = ()
    """Texts that end a turn, beside the model's own stop tokens; they stay in the response."""
    turns: Annotated[int, Meta(ge=1, description=_TURNS)] = 8
    """Calls for one response at most; a turn that ends after them ends the response."""
    turn_tokens: NonNegativeInt = 0
    """Tokens that one turn may sample; 0: what `sampling.max_tokens` leaves. That limit is of
    the whole response, appended tokens included."""
    failure_text: str = ""
    """Appended when a call fails or takes too long, and the model continues; empty: the response
    is missing from its group, as one whose reward failed."""


class Stateless:
    """Mix-in for plug-ins without options: takes them all the same."""

    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options | None = None) -> None:
        del options
