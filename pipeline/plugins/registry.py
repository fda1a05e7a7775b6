"""The seams: what a plug-in must offer, and how one is found by name.

A name is, in this order: `package.module:Class`; a module of the house
(`pipeline/plugins/selectors/first_m.py` holds the class registered as `first_m`); an
entry point of group `darts.<seam>s`. An entry point is never imported unless
the configuration names it.

Every plug-in is a class with a nested `Options` Struct (checked when the
configuration is loaded) and a constructor that takes it. State that lasts is
offered by `state()` and `restore(state)`, msgpack-able, and saved in
checkpoints; a plug-in without them is taken to have none.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec

from pipeline.plugins.actions import (
    Advantages,
    Allotment,
    AnyVerb,
    Append,
    BatchVerb,
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

PACKAGES = {
    "prompts": "pipeline.plugins.prompt_orders",
    "budget": "pipeline.plugins.budgets",
    "selector": "pipeline.plugins.selectors",
    "batch": "pipeline.plugins.batch_rules",
    "rollout": "pipeline.plugins.environments",
    "reward": "pipeline.plugins.rewards",
    "advantage": "pipeline.plugins.advantages",
    "loss": "learner.losses",
}
"""seam -> where the plug-ins of the house live; also the list of seams."""

ENTRY_POINTS = {
    "prompts": "darts.prompts",
    "budget": "darts.budgets",
    "selector": "darts.selectors",
    "batch": "darts.batches",
    "rollout": "darts.rollouts",
    "reward": "darts.rewards",
    "advantage": "darts.advantages",
    "loss": "darts.losses",
}
"""seam -> entry point group of installed plug-ins."""


class PluginError(Exception):
    """A plug-in cannot be found, or does not fit its seam."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every plug-in's options: fields with a default and a docstring each."""

    def problems(self, group_size: int) -> Iterator[str]:
        """Complaints that types cannot express, 'option is X, but ...'; empty: fine."""
        return iter(())


# --- selector ---------------------------------------------------------------------------------


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
    """About once a second."""


SelectorEvent = Finish | Rewarded | Every | Relaxed | Barrier | WeightsPublished | Ticked


class Wants(msgspec.Struct, frozen=True, kw_only=True):
    """Which events a selector is asked on; `Finish`, `Relaxed` and `Barrier` always come."""

    reward: bool = False
    every: int = 0  # tokens; 0: never
    published: bool = False
    tick: bool = False


class Selector(Protocol):
    wants: Wants

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyVerb]: ...


class PromptOrder(Protocol):
    """May also have a property `epochs: dict[str, float]`, how often each source has been gone
    through, reported with each step."""

    def plan(self, view: PlanView) -> Plan:
        """Up to `view.want` prompts, none of `view.outstanding`. Empty: none left."""
        ...

    def ended(self, prompt: int, how: str, rewards: Sequence[float]) -> None:
        """A group of this prompt has ended: 'trained' or 'dropped' (deferred ones come back)."""
        ...


class Budget(Protocol):
    """May also offer `ended(group: EndedView)`, told of every training group that ends, and
    `figures() -> dict`, logged with each plan."""

    def allot(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allotment]:
        """One allotment a prompt."""
        ...

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        """`idle` slots have nothing to do, below the knee of their engines: (group, how many
        more candidates), `idle` at most in all. Empty: leave them idle."""
        ...


class Batch(Protocol):
    def decide(self, view: BatchView) -> Iterable[BatchVerb]: ...


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
        """What follows: text or tokens that are appended, after which the model goes on; None
        when the response is complete."""
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
    """Appended when a call fails or takes too long, and the model goes on; empty: the response
    is missing from its group, as one whose reward failed."""

    def problems(self, group_size: int) -> Iterator[str]:
        yield from super().problems(group_size)
        if "" in self.stop:
            yield "stop holds an empty text, which would end every turn at its first token"
        if self.turns < 1:
            yield f"turns is {self.turns}, expected at least 1; `rollout: single` has no calls"
        if self.turn_tokens < 0:
            yield f"turn_tokens is {self.turn_tokens}, expected at least 1, or 0 for no limit"


# --- registry ---------------------------------------------------------------------------------

_T = TypeVar("_T", bound=type)
_registered: dict[tuple[str, str], type] = {}


def register(seam: str, name: str) -> Callable[[_T], _T]:
    """Class decorator: this class is the plug-in `name` of `seam`."""
    if seam not in PACKAGES:
        raise PluginError(f"no seam {seam!r}; seams: {', '.join(PACKAGES)}")

    def enter(cls: _T) -> _T:
        known = _registered.get((seam, name))
        if known is not None and (known.__module__, known.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise PluginError(f"{seam} {name!r} is both {known.__module__} and {cls.__module__}")
        _registered[seam, name] = cls
        return cls

    return enter


def house_names(seam: str) -> list[str]:
    """Names of the plug-ins that come with darts (no import of them)."""
    # find_spec, not import: learner.losses must not be loaded to be listed
    spec = importlib.util.find_spec(PACKAGES[seam])
    if spec is None or spec.submodule_search_locations is None:
        return []
    found = pkgutil.iter_modules(spec.submodule_search_locations)
    return sorted(module.name for module in found if not module.name.startswith("_"))


def entry_points(seam: str) -> dict[str, importlib.metadata.EntryPoint]:
    """Installed plug-ins of a seam by name, read from metadata only."""
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS[seam]):
        if point.name in found and found[point.name].value != point.value:
            raise PluginError(
                f"{seam} {point.name!r} is offered twice: {found[point.name].value} "
                f"and {point.value}; uninstall one, or name it as package.module:Class"
            )
        found[point.name] = point
    return found


def names(seam: str) -> list[str]:
    """Every name that `find` knows, the house's first."""
    house = house_names(seam)
    return house + [name for name in entry_points(seam) if name not in house]


def find(seam: str, name: str) -> type[Any]:
    """The class behind a name. Raises PluginError with the nearest known name."""
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except Exception as error:  # whatever somebody else's module does when imported
            what = f"{type(error).__name__}: {error}"
            if isinstance(error, ModuleNotFoundError) and error.name == module_name.split(".")[0]:
                what += " (of the directory you are in: set PYTHONPATH=.)"
            raise PluginError(f"{seam} {name!r}: {what}") from error
        return _checked(seam, name, found)
    if name in house_names(seam):
        importlib.import_module(f"{PACKAGES[seam]}.{name}")
        return _checked(seam, name, _registered[seam, name])
    points = entry_points(seam)
    if name in points:
        try:
            return _checked(seam, name, points[name].load())
        except Exception as error:
            what = f"{points[name].value}: {type(error).__name__}: {error}"
            raise PluginError(f"{seam} {name!r}: {what}") from error
    near = difflib.get_close_matches(name, names(seam), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise PluginError(f"no {seam} named {name!r}{hint} (known: {', '.join(names(seam))})")


_METHODS: dict[str, tuple[str, ...]] = {
    "prompts": ("plan", "ended"),
    "budget": ("allot", "top_up"),
    "selector": ("decide",),
    "batch": ("decide",),
    "rollout": ("turn",),
    "reward": ("score",),
    "advantage": ("advantages",),
    "loss": ("loss",),
}


def _checked(seam: str, name: str, found: object) -> type[Any]:
    if not isinstance(found, type):
        raise PluginError(f"{seam} {name!r} is {found!r}, expected a class")
    for method in _METHODS[seam]:
        if not callable(getattr(found, method, None)):
            raise PluginError(f"{seam} {name!r}: {found.__qualname__} has no method {method}()")
    if hasattr(found, "state") != hasattr(found, "restore"):
        raise PluginError(f"{seam} {name!r} must offer both state() and restore(), or neither")
    return found


def options_type(cls: type[Any]) -> type[Options]:
    """The plug-in's Options; the empty one if it declares none."""
    return getattr(cls, "Options", Options)


def needs_answer(reward: type[Any], options: Options) -> bool:
    """Whether a reward compares with the data's answer: its `needs_answer`, True or asked with
    its options."""
    needs = getattr(reward, "needs_answer", False)
    return bool(needs(options) if callable(needs) else needs)


class Stateless:
    """Mix-in for plug-ins without options: takes them all the same."""

    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options | None = None) -> None:
        del options
