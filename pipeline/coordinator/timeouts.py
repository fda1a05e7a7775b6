"""How long each kind of wait may last, who can end it, and what the run does past its limit.

One table, as data: the watchdog acts by it, `darts status` prints it, and no wait is
without a row. A kind without a limit of its own ends with another wait that has one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, as `watch` of the configuration has them; infinite: never."""

    join_s: float = math.inf
    load_s: float = math.inf
    abort_s: float = math.inf
    sampling_s: float = math.inf
    still_s: float = math.inf
    reward_s: float = math.inf
    learner_s: float = math.inf
    checkpoint_s: float = math.inf


class Kind(StrEnum):
    """Of a wait."""

    JOIN = "join"  # of learner and engines, at the start
    NO_ENGINE = "no engine"  # all are gone
    LOAD = "load"  # an engine loads and proves weights
    ABORT = "abort"  # an engine is to say that a leg has ended
    ENGINE = "engine"  # nothing at all comes of what it samples
    TRAJECTORY = "trajectory"  # no token of this one comes
    SLOT = "slot"  # a trajectory waits for one
    PARKED = "parked"  # until a slot, or new weights
    REWARD = "reward"
    ROLLOUT = "rollout"  # what follows a turn
    LEARNER = "learner"  # a rank trains, or closes the step
    CHECKPOINT = "checkpoint"
    RULE = "rule"  # nothing is under way: only a plug-in could go on


class Action(StrEnum):
    """What the run does; the words are what `darts status` says of it."""

    RESTART = "the engine is ended and started again; its work goes on elsewhere"
    REQUEUE = "it is aborted there and goes on elsewhere with the tokens held"
    MISSING = "it counts as missing, never as 0"
    LOSE = "the rank is lost: the run ends, to be resumed from its last checkpoint"
    GIVE_UP = "it is given up; the next one is tried"
    STOP = "the run stops with this line, after a checkpoint if it can write one"
    NONE = "nothing: what it waits for has a limit of its own"


class Rule(msgspec.Struct, frozen=True):
    """A row: `setting` names the limit, '' for none."""

    setting: str
    by: str  # who can end the wait
    action: Action


RULES: dict[Kind, Rule] = {
    Kind.JOIN: Rule("join_s", "who is missing", Action.STOP),
    Kind.NO_ENGINE: Rule("join_s", "whoever starts engines", Action.STOP),
    Kind.LOAD: Rule("load_s", "the engine", Action.RESTART),
    Kind.ABORT: Rule("abort_s", "the engine", Action.RESTART),
    Kind.ENGINE: Rule("sampling_s", "the engine", Action.RESTART),
    Kind.TRAJECTORY: Rule("still_s", "the engine", Action.REQUEUE),
    Kind.SLOT: Rule("", "whoever holds a slot", Action.NONE),
    Kind.PARKED: Rule("", "a free slot, or the step's end", Action.NONE),
    Kind.REWARD: Rule("reward_s", "the reward workers", Action.MISSING),
    Kind.ROLLOUT: Rule("reward_s", "the rollout's workers", Action.MISSING),
    Kind.LEARNER: Rule("learner_s", "the rank", Action.LOSE),
    Kind.CHECKPOINT: Rule("checkpoint_s", "the ranks and the disk", Action.GIVE_UP),
    Kind.RULE: Rule("still_s", "the plug-in", Action.STOP),
}


def limit_s(kind: Kind, limits: Limits) -> float:
    """Seconds without a move after which the run acts; infinite: it does not."""
    setting = RULES[kind].setting
    return getattr(limits, setting) if setting else math.inf


def longest_s(kinds: Iterable[Kind], limits: Limits) -> float:
    """The longest limit of these waits; 0: nobody is acted on to end one of them."""
    found = (limit_s(kind, limits) for kind in kinds if kind is not Kind.RULE)
    return max((limit for limit in found if limit < math.inf), default=0.0)
