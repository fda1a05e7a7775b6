"""The pieces that a run's time is made of, step by step; all times are the stage's clock, seconds.

`timeline` makes them, `timing` makes figures of them, `trace` a viewer's file.
"""

from __future__ import annotations

import msgspec

from pipeline.observability.critical_path import Link, Segment
from pipeline.wire.messages import Span

UNKNOWN = "open"
"""The fate of what had none when the run, or what is kept of it, ended."""


class Leg(msgspec.Struct, kw_only=True):
    """A trajectory on an engine. Seconds of the stage's clock; 0.0: never came to it."""

    engine: str
    trajectory: int
    kind: str  # train | eval
    prompt: int
    queued: float  # waited for a slot since then
    placed: float  # the request was sent
    begun: float = 0.0  # it was with the engine
    first: float = 0.0  # token
    last: float = 0.0  # token, as the engine saw it
    heard: float = 0.0  # its end was with the stage
    tokens: int = 0  # of this leg
    finish: str = ""
    fate: str = UNKNOWN  # of its trajectory, in the ledger's words
    group: int = -1
    length: int = 0  # response tokens of its trajectory, earlier legs included
    reward: float | None = None
    asked: Link | None = None


class Scoring(msgspec.Struct, kw_only=True):
    """A reward that was asked for."""

    trajectory: int
    kind: str  # train | eval
    asked: float
    begun: float = 0.0  # a worker had it
    ended: float = 0.0
    heard: float = 0.0
    value: float | str | None = None  # the reward, or why there is none
    link: Link | None = None


class Calling(msgspec.Struct, kw_only=True):
    """A rollout that was asked what follows a turn."""

    trajectory: int
    kind: str  # train | eval
    turn: int
    asked: float
    begun: float = 0.0  # a worker had it
    ended: float = 0.0
    heard: float = 0.0
    appended: int = 0  # tokens
    why: str = ""  # it failed
    link: Link | None = None


class Work(msgspec.Struct, kw_only=True):
    """What a learner rank did in one go."""

    rank: int
    what: str
    start: float
    end: float
    of: tuple[int, ...] = ()  # groups or step
    asked: dict[int, float] = {}  # of those: when the order was with the rank
    link: Link | None = None


class Load(msgspec.Struct, kw_only=True):
    """A version on its way into an engine."""

    engine: str
    version: int
    asked: float
    heard: float = 0.0
    served: bool = False  # proved well enough
    stages: list[Span] = []
    link: Link | None = None


class Handover(msgspec.Struct, kw_only=True):
    """A group that was given to a learner rank."""

    group: int
    rank: int
    sent: float
    trajectories: tuple[int, ...]
    received: float = 0.0
    begun: float = 0.0
    heard: float = 0.0  # of its gradient
    link: Link | None = None  # of its order
    answer: Link | None = None


class Decision(msgspec.Struct, frozen=True):
    at: float
    seconds: float  # from what it was decided on, with the stage, to the commands, sent
    verb: str
    group: int
    why: str


class StepRecord(msgspec.Struct, kw_only=True):
    """What ended since the record before, and how the step came to be so long."""

    step: int
    since: float
    end: float = 0.0
    legs: list[Leg] = []
    scorings: list[Scoring] = []
    callings: list[Calling] = []
    works: list[Work] = []
    loads: list[Load] = []
    handovers: list[Handover] = []
    decisions: list[Decision] = []
    frames: list[tuple[float, float]] = []  # heard, seconds from an engine's sending to that
    hints: list[float] = []  # seconds from the stage's sending to a rank's hearing
    path: list[Segment] = []
