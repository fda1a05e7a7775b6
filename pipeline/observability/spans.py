"""The pieces that a run's time is made of, step by step; all times are the stage's clock, seconds.

`timeline` makes them, `timing` makes figures of them, `trace` a viewer's file. Pure.
"""

from __future__ import annotations

import msgspec

from pipeline.observability.critical_path import Link, Segment, follow
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


class RewardCall(msgspec.Struct, kw_only=True):
    """A reward that was asked for."""

    trajectory: int
    kind: str  # train | eval
    asked: float
    begun: float = 0.0  # a worker had it
    ended: float = 0.0
    heard: float = 0.0
    value: float | str | None = None  # the reward, or why there is none
    link: Link | None = None


class EnvironmentCall(msgspec.Struct, kw_only=True):
    """An environment that was asked what follows a turn."""

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
    """One piece of work of a learner rank."""

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


class TrainDispatch(msgspec.Struct, kw_only=True):
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
    action: str
    group: int
    why: str


class StepRecord(msgspec.Struct, kw_only=True):
    """All that ended since the record before, and the reason for the step's length."""

    step: int
    since: float
    end: float = 0.0
    legs: list[Leg] = []
    scorings: list[RewardCall] = []
    callings: list[EnvironmentCall] = []
    works: list[Work] = []
    loads: list[Load] = []
    handovers: list[TrainDispatch] = []
    decisions: list[Decision] = []
    frames: list[tuple[float, float]] = []  # heard, seconds from an engine's sending to that
    hints: list[float] = []  # seconds from the stage's sending to a rank's hearing
    path: list[Segment] = []


def leg_link(leg: Leg, now: float) -> Link:
    """Links from a leg's placement to the frame that ended it, or to `now`."""
    lane, who = f"engine {leg.engine}", f"trajectory {leg.trajectory}"
    if leg.finish == "lost":
        return follow(leg.asked, lane, "sampling on an engine that was lost", now, who)
    who += f", {leg.tokens} tokens"
    if not leg.begun:  # the engine does not say, or continues
        return follow(leg.asked, lane, "decoding", now, who)
    link = follow(leg.asked, lane, "request on its way", leg.begun, who)
    link = follow(link, lane, "to the first token", leg.first or leg.last, who)
    link = follow(link, lane, "decoding", leg.last, who)
    return follow(link, "stage", "tokens on their way", now, who)


def load_link(load: Load) -> Link:
    """Links from the order to load a version to the report that it is served, or refused."""
    lane = f"engine {load.engine}"
    if not load.stages:
        return follow(load.link, lane, "weights", load.heard)
    link = follow(load.link, lane, "word of new weights on its way", load.stages[0].start_s)
    for stage in load.stages:
        link = follow(link, lane, stage.what, stage.end_s)
    return follow(link, "stage", "word of the load on its way", load.heard)


def scoring_link(scoring: RewardCall) -> Link:
    """Links from the question for a reward to its answer."""
    who = f"trajectory {scoring.trajectory}"
    link = follow(scoring.link, "rewards", "waiting for a worker", scoring.begun, who)
    link = follow(link, "rewards", "scoring", scoring.ended, who)
    return follow(link, "stage", "reward on its way", scoring.heard, who)


def environment_call_link(calling: EnvironmentCall) -> Link:
    """Links from the question what follows a turn to its answer."""
    who = f"trajectory {calling.trajectory}, turn {calling.turn + 1}"
    link = follow(calling.link, "environments", "waiting for a worker", calling.begun, who)
    link = follow(link, "environments", "asking the environment", calling.ended, who)
    return follow(link, "stage", "what follows on its way", calling.heard, who)
