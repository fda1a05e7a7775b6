"""The views that plug-ins get: read-only snapshots of a group, a step, a prompt.

Built by the core (and by `pipeline.plugins.testing` for tests); a plug-in never holds
the core's own objects, so it cannot change them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Protocol

import msgspec

ENDED = ("finished", "truncated")
UNENDED = ("queued", "running", "waiting_env", "parked")


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """One trajectory of a group."""

    id: int
    state: str  # queued running waiting_env parked finished truncated aborted
    tokens: int  # response tokens held that the model sampled
    confidence: float  # mean behaviour logprob, nats per token; 0.0 while no token is held
    entropy: float | None = None
    """Mean entropy of the policy, nats per token that the learner has looked at so far; None:
    none, or the selector does not want it (`Wants.entropy`)."""
    reward: float | None = None  # None: not known yet, or failed
    reward_failed: bool = False
    parts: Mapping[str, float] = {}
    versions: tuple[int, ...] = ()  # policy versions that sampled it, oldest first
    hit_limit: bool = False  # truncated by a limit, of tokens or turns (not by `Stop`)
    variant: str = ""  # see `Sample`
    fork: int = -1  # id of the member whose first tokens it began with; -1: none
    foreign: str = ""  # source of a response that was not sampled for this group, see `Include`
    score: float | None = None  # newest scalar of its engine, where the engine gives one
    remaining: float | None = None  # tokens still to come, where the engine predicts them
    marked: int | None = None
    """Response tokens up to the one that completed the first text of `sampling.markers`; None: none
    has been seen."""


class Statistics(Protocol):
    """Running figures across all groups, updated in event order."""

    def confidence_quantile(self, q: float, at_least: int = 64) -> float | None:
        """The q-quantile of the last 512 finished members' confidence; None before `at_least`."""
        ...

    def length_quantile(self, q: float, at_least: int = 64) -> float | None:
        """The same of response lengths, tokens."""
        ...

    def pass_rate(self) -> float | None:
        """Mean reward of the last 512 scored members."""
        ...


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """One group, for a selector. Members in order of arrival: ended ones in the
    order in which they ended, then the others by id. Aborted ones are left out."""

    id: int
    prompt: int
    size: int  # M: members wanted (smaller after `Relax`)
    budget: int  # M': members sampled so far, aborted ones included
    step: int  # the open one
    now: float  # seconds, the stage's monotonic clock
    members: tuple[MemberView, ...]
    statistics: Statistics
    seed: int = 0
    max_tokens: int = 0
    version: int = -1  # newest weights of the learner; -1: none yet
    max_staleness: int = 0  # versions that a token trained on may be behind them
    due: bool = False  # holds a token that is too old to be trained on after the next publish
    opened: int = 0  # step in which it was opened
    attempt: int = 0  # how often its prompt has been deferred before
    tag: str = ""  # kind of its prompt
    note: str = ""  # of the budget's allocation
    held: bool = False  # `Hold` was the last word on it
    foreign: tuple[str, ...] = ()  # sources that `Include` may name now

    @property
    def finished(self) -> tuple[MemberView, ...]:
        """Ended with a stop token."""
        return tuple(m for m in self.members if m.state == "finished")

    @property
    def truncated(self) -> tuple[MemberView, ...]:
        """Ended at their limit, or by `Stop`."""
        return tuple(m for m in self.members if m.state == "truncated")

    @property
    def ended(self) -> tuple[MemberView, ...]:
        return tuple(m for m in self.members if m.state in ENDED)

    @property
    def unended(self) -> tuple[MemberView, ...]:
        """Queued, running, waiting for the environment, and parked: members of a lost engine
        are here, not gone."""
        return tuple(m for m in self.members if m.state in UNENDED)

    def rng(self, key: str) -> random.Random:
        """Randomness that depends on seed, group and key alone, so a replay is exact."""
        return random.Random(f"{self.seed}/{self.id}/{key}")


class GroupFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One group that the open step could train on now or later, for a batch rule."""

    id: int
    prompt: int
    tag: str
    state: str  # open enough dead chosen ready taken sent accumulated
    opened: int  # step in which it was opened
    version: int  # of its oldest token that may be trained on; -1: it holds none
    rewards: tuple[float, ...]  # known ones: of the chosen members, or of all
    lengths: tuple[int, ...]  # sampled tokens of those members
    held: bool = False
    asleep: bool = False  # its unended members are all parked until the step has ended
    replay: bool = False  # opened by `Replay`


class KeptView(msgspec.Struct, frozen=True, kw_only=True):
    """One group that was trained on and is kept (`step.keep`), for `Replay`."""

    group: int
    prompt: int
    tag: str
    reward: float  # mean
    version: int  # of its oldest token
    step: int  # that trained on it first
    replays: int  # times that it was trained on again


def no_facts(group: int) -> GroupFacts:
    raise KeyError(group)


class BatchView(msgspec.Struct, frozen=True, kw_only=True):
    """The open step, for a batch rule. Group ids in the order of becoming so."""

    step: int
    need: int  # groups wanted
    taken: int
    ready: tuple[int, ...]
    chosen: int  # selection made, rewards on their way
    enough: int  # could close now, still open
    open: int  # open and not enough
    size: int  # M as of now
    group_size: int  # M by config
    closing: bool  # the barrier has been raised
    ahead: int = 0  # steps that generation may be ahead of this one
    due: tuple[int, ...] = ()  # ready ones that would be too old for the next step
    held: int = 0  # of those open: their selector said `Hold`
    version: int = -1  # newest weights of the learner
    exhausted: bool = False  # no prompt is left, or no more may be opened
    kept: tuple[KeptView, ...] = ()  # oldest first
    facts: Callable[[int], GroupFacts] = no_facts
    """Group id -> more about it. Raises KeyError if it is not live."""
    groups: Callable[[], tuple[int, ...]] = tuple
    """-> ids of all live groups, oldest first."""


class SourceView(msgspec.Struct, frozen=True):
    """One of several sources of prompts: `count` prompts from index `first` on."""

    first: int
    count: int
    weight: float  # prompts of it for each one of a source with weight 1


class PlanView(msgspec.Struct, frozen=True, kw_only=True):
    """The question to a prompt order: up to `want` prompts. Valid during the call only:
    `outstanding` is too large to be copied for each."""

    step: int
    want: int
    need: int = 0  # groups that the step trains on
    first: bool = False  # the first plan of the step
    dataset: int  # number of prompts in the data set
    sources: tuple[SourceView, ...] = ()  # where it has several; together the whole data set
    outstanding: Set[int]  # prompts open now: never plan one of them
    deferred: tuple[int, ...]  # given back, oldest first
    version: int = -1  # newest weights of the learner
    tags: Sequence[str] = ()  # kind of each prompt; () where the data set names none


class PromptView(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, for a budget."""

    prompt: int
    tokens: int  # length of the prompt
    tag: str = ""  # its kind, as the data set names it


class Costs(Protocol):
    """The cost of a token, as the engines measured it."""

    def seconds(self, running: float) -> float:
        """Seconds per token of one sequence while `running` run on its engine."""
        ...


def all_of_them(candidates: int) -> int:
    """A group waits for every candidate."""
    return candidates


class BudgetView(msgspec.Struct, frozen=True, kw_only=True):
    """The step and the engines that will generate it, for a budget."""

    step: int
    size: int  # M
    max_tokens: int  # limit of a response by config
    need: int  # groups of a step
    engines: int  # that generate the step, at least 1; at a publish none of them serves yet
    slots: int  # of all of them
    latency: Costs
    waits_for: Callable[[int], int] = all_of_them
    """Candidates -> how many of them must have ended before the selector closes the group."""


class EndedView(msgspec.Struct, frozen=True, kw_only=True):
    """One training group that has ended; every plug-in that has a method `ended` is told."""

    prompt: int
    tokens: int  # length of the prompt
    tag: str
    lengths: tuple[int, ...]  # response tokens of every candidate that held any
    censored: tuple[bool, ...]  # True: aborted or truncated, its length is a lower bound
    group: int = -1
    fate: str = "trained"  # trained | dropped | deferred
    why: str = ""
    kind: str = ""
    step: int = 0  # the open one
    opened: int = 0  # step in which it was opened
    rewards: tuple[float, ...] = ()  # known ones, of all candidates
    scored: tuple[int, ...] = ()  # response tokens of the candidates in `rewards`
    variants: tuple[str, ...] = ()  # of the candidates in `rewards`


class PredictedLengths(msgspec.Struct, frozen=True, kw_only=True):
    """What an open group's candidates are predicted to have still to come, tokens."""

    unended: tuple[float, ...] = ()  # each of those, ascending
    fresh: float | None = None  # a new one, from its first token on; None: nothing is known


class OpenView(msgspec.Struct, frozen=True, kw_only=True):
    """One open group, for top-up."""

    id: int
    size: int  # M as of now
    sampled: int  # candidates so far
    finished: int  # with a stop token
    unended: int
    enough: bool
    prompt: int = -1
    tag: str = ""
    opened: int = 0  # step in which it was opened
    rewards: tuple[float, ...] = ()  # known ones
    held: bool = False
    note: str = ""  # of its allocation
    predicted: Callable[[], PredictedLengths] = PredictedLengths
    """-> lengths, by its engines' predictions or by responses that have ended. Costs as much as
    the group has members."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One chosen member, for an advantage."""

    reward: float
    tokens: int
    truncated: bool
    weight: float  # from Finalize
    max_tokens: int  # limit of its response
    id: int = -1
    group: int = -1
    prompt: int = -1
    tag: str = ""
    step: int = 0  # the open one
    stopped: bool = False  # truncated by `Stop`
    parts: Mapping[str, float] = {}
    confidence: float = 0.0  # mean behaviour logprob, nats per token
    entropy: float | None = None  # see `MemberView`
    versions: tuple[int, ...] = ()
    variant: str = ""
    foreign: str = ""  # see `MemberView`


class GroupOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One group of the step, for an advantage that sees all of them at once."""

    group: int
    prompt: int
    tag: str
    members: tuple[Outcome, ...]


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """One ended trajectory, for a reward (inside a reward worker)."""

    prompt: str
    response: str  # decoded, without special tokens
    finish: str  # 'stop' | 'length'
    tokens: int  # sampled ones
    answer: str
    columns: Mapping[str, object]  # the data set's line
    pieces: Sequence[tuple[str, bool]] = ()
    """(text, whether the model sampled it), one after another; () where nothing was appended."""
    messages: Sequence[Mapping[str, Any]] = ()  # the prompt, where the data set has messages
    ids: Sequence[int] = ()  # token ids of the response, the one that ended it included
    step: int = 0  # steps done when it was judged
    steps: int = 0  # of the run

    @property
    def sampled(self) -> str:
        """The part of the response that the model wrote."""
        if not self.pieces:
            return self.response
        return "".join(text for text, sampled in self.pieces if sampled)


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn of the model that is over, for an environment (inside a worker)."""

    prompt: str
    response: str  # all turns so far and what was appended, without special tokens
    text: str  # of this turn: what was sampled since the last append
    number: int  # of this turn, from 0
    finish: str  # 'stop': a stop token or text | 'length': `turn_tokens`
    left: int  # tokens that the response may still have, appended ones included
    answer: str
    columns: Mapping[str, object]  # the data set's line
    pieces: Sequence[tuple[str, bool]] = ()  # see `Sampled`
    ids: Sequence[int] = ()  # token ids of the response
    memory: Any = None  # of the last `Append`


class EvalSet(msgspec.Struct, frozen=True, kw_only=True):
    """Some of the held-out prompts, with figures of their own."""

    name: str  # empty: data.held_out
    first: int  # index of its first prompt
    count: int  # prompts
    samples: int  # for each prompt
    k: tuple[int, ...] = ()  # of pass@k
