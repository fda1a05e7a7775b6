"""One table of waits: how long each may last, who can end it, what the run does past its limit.

One table, as data: the watchdog acts by it, `darts status` prints it, and no wait is
without a row. A kind without a limit of its own ends with another wait that has one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, as `timeouts` of the configuration has them; infinite: never."""

    join_s: float = math.inf
    load_s: float = math.inf
    abort_s: float = math.inf
    sampling_s: float = math.inf
    no_token_s: float = math.inf
    reward_s: float = math.inf
    learner_s: float = math.inf
    close_s: float = math.inf  # 0: old logprobs are not asked for before the weights change
    checkpoint_s: float = math.inf


class WaitKind(StrEnum):
    """Kinds of wait."""

    JOIN = "join"  # of learner and engines, at the start
    NO_ENGINE = "no engine"  # all are gone
    LOAD = "load"  # an engine loads and proves weights
    ABORT = "abort"  # an engine is to say that a leg has ended
    ENGINE = "engine"  # nothing at all comes of what it samples
    TRAJECTORY = "trajectory"  # no token of this one comes
    SLOT = "slot"  # a trajectory waits for one
    PARKED = "parked"  # until a slot, or new weights
    REWARD = "reward"
    ENVIRONMENT = "environment"  # what follows a turn
    LEARNER = "learner"  # a rank trains, or closes the step
    CLOSE = "close"  # ranks compute old logprobs before their weights change
    CHECKPOINT = "checkpoint"
    RULE = "rule"  # nothing is under way: only a plug-in could end it


class OverdueAction(StrEnum):
    """Actions of the run; the texts are shown by `darts status`."""

    RESTART = "the engine is ended and started again; its work goes on elsewhere"
    REQUEUE = "it is aborted there and goes on elsewhere with the tokens held"
    MISSING = "it counts as missing, never as 0"
    LOSE = "the rank is lost: the run ends, to be resumed from its last checkpoint"
    GIVE_UP = "it is given up; the next one is tried"
    GO_ON = "the step closes without them; tokens that lack one are counted as old_missing"
    STOP = "the run stops with this line, after a checkpoint if it can write one"
    NONE = "nothing: what it waits for has a limit of its own"


class TimeoutRule(msgspec.Struct, frozen=True):
    """A row: `setting` names the limit, '' for none."""

    setting: str
    by: str  # who can end the wait
    action: OverdueAction


RULES: dict[WaitKind, TimeoutRule] = {
    WaitKind.JOIN: TimeoutRule("join_s", "who is missing", OverdueAction.STOP),
    WaitKind.NO_ENGINE: TimeoutRule("join_s", "whoever starts engines", OverdueAction.STOP),
    WaitKind.LOAD: TimeoutRule("load_s", "the engine", OverdueAction.RESTART),
    WaitKind.ABORT: TimeoutRule("abort_s", "the engine", OverdueAction.RESTART),
    WaitKind.ENGINE: TimeoutRule("sampling_s", "the engine", OverdueAction.RESTART),
    WaitKind.TRAJECTORY: TimeoutRule("no_token_s", "the engine", OverdueAction.REQUEUE),
    WaitKind.SLOT: TimeoutRule("", "whoever holds a slot", OverdueAction.NONE),
    WaitKind.PARKED: TimeoutRule("", "a free slot, or the step's end", OverdueAction.NONE),
    WaitKind.REWARD: TimeoutRule("reward_s", "the reward workers", OverdueAction.MISSING),
    WaitKind.ENVIRONMENT: TimeoutRule(
        "reward_s", "the environment's workers", OverdueAction.MISSING
    ),
    WaitKind.LEARNER: TimeoutRule("learner_s", "the rank", OverdueAction.LOSE),
    WaitKind.CLOSE: TimeoutRule("close_s", "the ranks", OverdueAction.GO_ON),
    WaitKind.CHECKPOINT: TimeoutRule(
        "checkpoint_s", "the ranks and the disk", OverdueAction.GIVE_UP
    ),
    WaitKind.RULE: TimeoutRule("no_token_s", "the plug-in", OverdueAction.STOP),
}


def limit_s(kind: WaitKind, limits: Timeouts) -> float:
    """Seconds without a move after which the run acts; infinite: it does not."""
    setting = RULES[kind].setting
    return getattr(limits, setting) if setting else math.inf


def longest_s(kinds: Iterable[WaitKind], limits: Timeouts) -> float:
    """The longest limit of these waits; 0: none of them has one."""
    found = (limit_s(kind, limits) for kind in kinds if kind is not WaitKind.RULE)
    return max((limit for limit in found if limit < math.inf), default=0.0)
