"""Trajectories and groups: what they hold, and the tables of what may happen to them.

`advance` moves one along its table or raises `IllegalTransition` and changes
nothing. The diagrams in the documentation are drawn from the tables. Both are
Structs, so a checkpoint holds them as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import msgspec

from pipeline.wire.messages import TrainMember


class IllegalTransition(Exception):
    """A move that is not in its table: our own logic is wrong; nothing was changed."""

    def __init__(self, who: str, move: str, state: str, legal: Iterable[str]) -> None:
        super().__init__(f"{who}: {move} while {state}; legal: {', '.join(legal) or 'none'}")


class TrajectoryState(StrEnum):
    """States of a trajectory."""

    __hash__ = str.__hash__  # as its text, which it equals; that of Enum is much slower

    QUEUED = "queued"
    RUNNING = "running"
    WAITING_ENV = "waiting_env"  # its turn is over, the environment is asked
    PARKED = "parked"
    FINISHED = "finished"
    TRUNCATED = "truncated"
    ABORTED = "aborted"


class TrajectoryEvent(StrEnum):
    __hash__ = str.__hash__

    PLACED = "placed"
    ENDED = "ended"
    HIT_LIMIT = "hit limit"
    STOPPED = "stopped"
    DISCARDED = "discarded"
    SHELVED = "shelved"
    RESUMED = "resumed"
    LEG_LOST = "leg lost"
    TURN_OVER = "turn over"
    CONTINUED = "continued"


TRANSITIONS: dict[TrajectoryState, dict[TrajectoryEvent, TrajectoryState]] = {
    TrajectoryState.QUEUED: {
        TrajectoryEvent.PLACED: TrajectoryState.RUNNING,
        TrajectoryEvent.STOPPED: TrajectoryState.TRUNCATED,
        TrajectoryEvent.DISCARDED: TrajectoryState.ABORTED,
        TrajectoryEvent.SHELVED: TrajectoryState.PARKED,
    },
    TrajectoryState.RUNNING: {
        TrajectoryEvent.ENDED: TrajectoryState.FINISHED,
        TrajectoryEvent.HIT_LIMIT: TrajectoryState.TRUNCATED,
        TrajectoryEvent.STOPPED: TrajectoryState.TRUNCATED,  # trainable: `Stop`, not `Abort`
        TrajectoryEvent.DISCARDED: TrajectoryState.ABORTED,
        TrajectoryEvent.SHELVED: TrajectoryState.PARKED,
        TrajectoryEvent.LEG_LOST: TrajectoryState.QUEUED,  # its next leg resumes it
        TrajectoryEvent.TURN_OVER: TrajectoryState.WAITING_ENV,
    },
    TrajectoryState.WAITING_ENV: {
        TrajectoryEvent.CONTINUED: TrajectoryState.QUEUED,  # with what the environment appended
        TrajectoryEvent.ENDED: TrajectoryState.FINISHED,
        TrajectoryEvent.HIT_LIMIT: TrajectoryState.TRUNCATED,
        TrajectoryEvent.STOPPED: TrajectoryState.TRUNCATED,
        TrajectoryEvent.DISCARDED: TrajectoryState.ABORTED,
    },
    TrajectoryState.PARKED: {
        TrajectoryEvent.RESUMED: TrajectoryState.QUEUED,
        TrajectoryEvent.STOPPED: TrajectoryState.TRUNCATED,
        TrajectoryEvent.DISCARDED: TrajectoryState.ABORTED,
    },
    TrajectoryState.FINISHED: {},
    TrajectoryState.TRUNCATED: {},
    TrajectoryState.ABORTED: {},
}

ENDED = frozenset({TrajectoryState.FINISHED, TrajectoryState.TRUNCATED})
UNENDED = frozenset(
    {
        TrajectoryState.QUEUED,
        TrajectoryState.RUNNING,
        TrajectoryState.WAITING_ENV,
        TrajectoryState.PARKED,
    }
)


class Trajectory(msgspec.Struct, kw_only=True):
    """One sampled response. Its tokens grow chunk by chunk, leg after leg."""

    id: int
    group: int
    member: int  # index in the group, from 0
    max_tokens: int
    state: TrajectoryState = TrajectoryState.QUEUED
    since: float = 0.0  # when it entered `state`
    variant: str = ""  # what stands behind its prompt, and behind no other's (`Sample`)
    fork: int = -1  # id of the member whose first tokens it began with; -1: none
    prefix: int = 0  # so many of them; they are in the account of whoever sampled them
    foreign: str = ""  # source of a response that was not sampled for its group (`Include`)
    leg: int = 0  # number of the current leg, or of the next one to be placed
    engine: str = ""  # of the running leg
    tokens: bytearray = msgspec.field(default_factory=bytearray)  # int32
    logprobs: bytearray = msgspec.field(default_factory=bytearray)  # float32; 0 where appended
    appended: list[tuple[int, int]] = msgspec.field(default_factory=list[tuple[int, int]])
    """(first, count) of response tokens that the environment appended; the others were sampled."""
    appended_tokens: int = 0  # in all
    turns: int = 0  # of the model that are over and were passed to the environment
    turn_began: int = 0  # tokens held when the turn at hand began
    turn_finish: str = ""  # how the last one ended: stop | length
    memory: Any = None  # what the environment wants back at its next call
    limited: bool = False  # ended by a limit: tokens, or calls of the environment
    logprob_sum: float = 0.0
    version_starts: list[tuple[int, int]] = msgspec.field(default_factory=list[tuple[int, int]])
    """(first token, policy version) of each stretch of tokens that one version sampled."""
    old: bytearray = msgspec.field(default_factory=bytearray)
    """float32, logprob of each token under the version that sampled it, as learner ranks have
    computed it; NaN: not known. It may be shorter than the response: no more is known."""
    entropy_sum: float = 0.0  # nats, of the policy at the first `looked` tokens
    looked: int = 0  # response tokens whose entropy a learner rank has computed
    score: float | None = None  # newest that its engine gave
    remaining: float | None = None  # tokens to come, as its engine predicted with the newest chunk
    marked: int | None = None  # response tokens up to the first marker (`sampling.markers`)
    parked_until: str = ""  # "slot" | "published" while parked, or to be parked after a call
    errors: int = 0  # legs that the engine ended by itself
    streamed: int = 0  # response tokens that were sent to a learner rank
    scored: bool = False  # reward known or failed
    reward: float | None = None
    reward_why: str = ""  # why it failed
    ended_why: str = ""  # why the selector stopped or aborted it, or why it was given up
    account: str = ""  # where its tokens are counted; "": it has not left its group
    parts: dict[str, float] = {}

    @property
    def held(self) -> int:
        """Response tokens held, appended ones included."""
        return len(self.tokens) // 4

    @property
    def sampled(self) -> int:
        """Response tokens held that the model sampled: its length, to whoever decides."""
        return len(self.tokens) // 4 - self.appended_tokens

    @property
    def own(self) -> int:
        """Those of `sampled` that were sampled for it and for no other: its part of the ledger."""
        return 0 if self.foreign else self.sampled - self.prefix

    @property
    def versions(self) -> list[int]:
        """Policy versions that sampled it: distinct, oldest first."""
        return sorted({version for _, version in self.version_starts})

    @property
    def last_token(self) -> int:
        """The newest token, -1 if none is held, or if it was appended."""
        if not self.tokens or (self.appended and sum(self.appended[-1]) == self.held):
            return -1
        return int.from_bytes(self.tokens[-4:], "little", signed=True)

    @property
    def confidence(self) -> float:
        """Mean behaviour logprob, nats per sampled token."""
        return self.logprob_sum / self.sampled if self.sampled else 0.0

    @property
    def entropy(self) -> float | None:
        """Mean entropy of the policy, nats per sampled token that a learner rank has looked at."""
        appended = (max(0, min(n, self.looked - first)) for first, n in self.appended)
        sampled = self.looked - sum(appended)
        return self.entropy_sum / sampled if sampled else None

    @property
    def reward_failed(self) -> bool:
        return self.scored and self.reward is None

    def advance(self, cause: TrajectoryEvent, now: float) -> None:
        """Move along the table. Raises IllegalTransition and changes nothing."""
        legal = TRANSITIONS[self.state]
        if cause not in legal:
            raise IllegalTransition(f"trajectory {self.id}", cause, self.state, legal)
        self.state, self.since = legal[cause], now


class GroupState(StrEnum):
    """States of a group; three of them are open, three are taken."""

    __hash__ = str.__hash__

    OPEN = "open"
    ENOUGH = "enough"  # could close now; stays open until the step's barrier
    DEAD = "dead"  # enough, and without signal so far: another prompt is opened for it
    CHOSEN = "chosen"
    READY = "ready"
    TAKEN = "taken"  # into a step
    SENT = "sent"  # to its learner rank
    ACCUMULATED = "accumulated"  # its gradient is in the step's sum
    TRAINED = "trained"
    DEFERRED = "deferred"
    DROPPED = "dropped"
    EVALUATED = "evaluated"


OPEN_STATES = (GroupState.OPEN, GroupState.ENOUGH, GroupState.DEAD)
TAKEN_STATES = (GroupState.TAKEN, GroupState.SENT, GroupState.ACCUMULATED)

_UNTAKEN_ENDS = {GroupState.DEFERRED, GroupState.DROPPED}
# Back to READY: a rank was lost, the step is run again, or a checkpoint is written.
_TAKEN_ENDS = {GroupState.READY, GroupState.DROPPED}
GROUP_TRANSITIONS: dict[GroupState, frozenset[GroupState]] = {
    GroupState.OPEN: frozenset(
        {GroupState.ENOUGH, GroupState.CHOSEN, GroupState.EVALUATED, *_UNTAKEN_ENDS}
    ),
    GroupState.ENOUGH: frozenset({GroupState.DEAD, GroupState.CHOSEN, *_UNTAKEN_ENDS}),
    GroupState.DEAD: frozenset({GroupState.ENOUGH, GroupState.CHOSEN, *_UNTAKEN_ENDS}),
    GroupState.CHOSEN: frozenset({GroupState.READY, *_UNTAKEN_ENDS}),
    GroupState.READY: frozenset({GroupState.TAKEN, *_UNTAKEN_ENDS}),
    GroupState.TAKEN: frozenset({GroupState.SENT, *_TAKEN_ENDS}),
    GroupState.SENT: frozenset({GroupState.ACCUMULATED, *_TAKEN_ENDS}),
    GroupState.ACCUMULATED: frozenset({GroupState.TRAINED, *_TAKEN_ENDS}),
    GroupState.TRAINED: frozenset(),
    GroupState.DEFERRED: frozenset(),
    GroupState.DROPPED: frozenset(),
    GroupState.EVALUATED: frozenset(),
}


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A group that was trained on, with all that a rank needs to train on it again."""

    group: int
    prompt: int
    reward: float  # mean
    version: int  # of its oldest token
    step: int  # that trained on it first
    members: tuple[TrainMember, ...]
    replays: int = 0
    variants: dict[int, str] = {}  # of the members that have one

    @property
    def tokens(self) -> int:
        """Response tokens that training on it counts."""
        return sum(m.sampled_tokens for m in self.members if m.weight > 0)


class Group(msgspec.Struct, kw_only=True):
    """All trajectories sampled for one prompt in one attempt."""

    id: int
    kind: str  # train | eval
    prompt: int
    attempt: int
    step: int
    size: int  # M for this group
    max_tokens: int
    state: GroupState = GroupState.OPEN
    since: float = 0.0
    sampled: int = 0  # candidates so far, those that have left the group included
    included: list[str] = msgspec.field(default_factory=list[str])
    """Sources of the responses that were included, also of those that have left the group."""
    members: list[Trajectory] = msgspec.field(default_factory=list[Trajectory])
    arrivals: list[int] = msgspec.field(default_factory=list[int])  # ids, in order of ending
    audited: bool = False  # sampled to its end though the selector has chosen
    chosen: list[int] = msgspec.field(default_factory=list[int])  # in the selector's order
    chosen_weights: list[float] = msgspec.field(default_factory=list[float])  # of the selector
    advantages: list[float] = msgspec.field(default_factory=list[float])  # of `chosen`
    weights: list[float] = msgspec.field(default_factory=list[float])  # of `chosen`
    rank: int = -1  # learner rank that trains on it or gets its tokens early
    trained_tokens: float = 0.0  # reported by the rank once the group is accumulated
    why: str = ""
    greedy: bool = False  # sampled at temperature 0
    note: str = ""  # of the budget's allocation
    held: bool = False  # `Hold` was the selector's last word
    token_advantages: list[bytes] = msgspec.field(default_factory=list[bytes])
    """float32, of each sampled token of `chosen`; empty: `advantages` hold for all of them."""
    advantage_why: str = ""
    of_step: bool = False  # its advantages were given in view of the whole step
    replay: Kept | None = None  # trained on once more: it has no members of its own

    def member(self, trajectory: int) -> Trajectory | None:
        """The member of that id, or None if it is none of this group."""
        for found in self.members:
            if found.id == trajectory:
                return found
        return None

    @property
    def candidates(self) -> list[Trajectory]:
        """Its members that were sampled for it: all but the foreign ones."""
        return [member for member in self.members if not member.foreign]

    @property
    def is_open(self) -> bool:
        """Members may still be sampled, chosen or thrown out."""
        return self.state in OPEN_STATES

    @property
    def is_taken(self) -> bool:
        """The open step trains on it."""
        return self.state in TAKEN_STATES

    @property
    def is_sent(self) -> bool:
        """Its learner rank has it."""
        return self.state in (GroupState.SENT, GroupState.ACCUMULATED)

    @property
    def enough(self) -> bool:
        """The selector said that it could close; it has not yet."""
        return self.state in (GroupState.ENOUGH, GroupState.DEAD)

    @property
    def unended(self) -> bool:
        """True if a member has not ended yet."""
        return any(member.state in UNENDED for member in self.members)

    def wants_reward(self, member: Trajectory) -> bool:
        """Returns True if anything depends on the reward of this ended member."""
        return self.is_open or self.audited or member.id in self.chosen

    def judged_together(self) -> list[Trajectory]:
        """Members whose rewards are over all of them, once they are chosen: the chosen, by id. When
        those are scored, and the group is audited and none is left to end: all that ended."""
        ended = [member for member in self.members if member.state in ENDED]
        chosen = [member for member in ended if member.id in self.chosen]
        whole = self.audited and not self.unended and all(member.scored for member in chosen)
        return ended if whole else chosen

    def in_order_of_arrival(self) -> list[Trajectory]:
        """Ended members as they ended, then the unended by id; aborted ones left out."""
        by_id = {m.id: m for m in self.members}
        return [by_id[i] for i in self.arrivals] + [m for m in self.members if m.state in UNENDED]

    def advance(self, state: GroupState, now: float, why: str = "") -> None:
        """Move along the table. Raises IllegalTransition and changes nothing."""
        legal = GROUP_TRANSITIONS[self.state]
        if state not in legal:
            raise IllegalTransition(f"group {self.id}", f"to {state}", self.state, sorted(legal))
        self.state, self.since, self.why = state, now, why or self.why
