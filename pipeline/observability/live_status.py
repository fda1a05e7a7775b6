"""Says what a run does now, once a second: a coordinator -> `RunStatus`, for people and trackers.

Pure. Costs the same with 65,536 open groups as with a hundred: counts are those
that the group index, the engine pool and the queue keep anyway, and waits are looked for in
the oldest groups only. What the coordinator does not know (peers, reward
workers, the clock on the wall) is filled in by `pipeline.stage.status_feed`. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.coordinator.groups import OPEN_STATES, Group, GroupState
from pipeline.coordinator.timeouts import RULES, OverdueAction, Timeouts, limit_s
from pipeline.coordinator.waits import Wait

if TYPE_CHECKING:
    from pipeline.coordinator.coordinator import Coordinator

LONGEST_WAITS = 12
"""Waits that are shown."""
MOST_MEMBERS = 512
"""Members of each stage whose waits are looked at: with 65,536 open groups of 12 the whole of
`run_status` takes 0.3 ms, as with 1,024 groups; all waits take 1.5 to 2 s. Groups leave in about
the order in which they came, so the oldest wait longest."""
_OF_A_STEP = (
    "step",
    "seconds",
    "reward",
    "tokens_mean",
    "tokens_p95",
    "sampled_per_trained",
    "bubble_engine",
    "bubble_learner",
)
_OF_AN_EVALUATION = ("step", "reward", "accuracy", "tokens_mean", "tokens_p95", "seconds")


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that has joined."""

    name: str
    running: int  # slots that hold a leg
    slots: int
    version: int = -1  # proved, and served; -1: none yet
    loading: int = -1  # version that it loads and proves; -1: none


class WaitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One wait: who waits for whom."""

    seconds: float
    what: str
    kind: str = ""
    by: str = ""  # who can end it
    still_s: float = 0.0  # since anything moved that counts for its limit
    limit_s: float = 0.0  # of that; 0: none
    then: str = ""  # what the run does past the limit


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A process that is connected to the stage."""

    name: str
    role: str  # engine | learner
    activity: str  # in its own words
    heard_s: float  # since it was last heard of
    still_s: float  # since it last moved: another activity, or progress


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of a run, as `live.json` has it; what is not known has its default."""

    time: float = 0.0  # of the clock on the wall, seconds since 1970
    phase: str = ""
    paced: str = ""  # emulated pace, in words
    step: int = 0  # steps done
    steps: int = 0
    evaluations_left: int = 0  # one under way included
    checkpoint_every: int = 0  # steps; 0: none are written
    checkpoint_s: float = 0.0  # that the last one took
    checkpoint_writing: bool = False  # ranks or stage are writing one now, none of them waits
    training_seconds: float = 0.0  # inside steps that are done
    running: int = 0  # slots that hold a leg, all engines
    sampled: int = 0  # response tokens
    evaluating: int = 0  # held-out prompts whose samples are not all scored
    ledger: dict[str, int] = {}  # tokens by account
    engines: tuple[EngineStatus, ...] = ()
    queued: int = 0  # trajectories that wait for a slot; one that has left counts till its turn
    groups: dict[str, int] = {}  # live training groups: open, enough, dead, chosen, ready, taken
    at_rank: dict[str, int] = {}  # groups taken that a learner rank has not trained on yet
    rewards_queued: int = 0
    rewards_running: int = 0
    newest_step: dict[str, float] = {}  # figures of the step done last, named as in metrics.jsonl
    newest_eval: dict[str, float] = {}
    waits: tuple[WaitStatus, ...] = ()  # the longest first, of each group one
    peers: tuple[PeerStatus, ...] = ()
    missing: dict[str, float] = {}  # engines that the run lacks, and for how many seconds
    acted: dict[str, int] = {}  # waits past their limit that were acted on, by kind
    refused: dict[str, int] = {}  # frames that were not believed, and chunks that came too late


def run_status(coordinator: Coordinator, training_seconds: float) -> RunStatus:
    """The coordinator's part of what a run does now."""
    core, scheduler = coordinator.core, coordinator.scheduler
    history = coordinator.evaluations.history
    return RunStatus(
        phase=coordinator.run.phase.value,
        paced=core.settings.paced,
        step=core.step,
        steps=core.settings.steps,
        evaluations_left=coordinator.evaluations.left,
        checkpoint_every=core.settings.checkpoint_every,
        checkpoint_s=round(coordinator.run.checkpoint_s, 2),
        training_seconds=round(training_seconds, 2),
        running=scheduler.slot_usage.busy,
        sampled=core.ledger.sampled,
        evaluating=coordinator.evaluations.open,
        ledger=dict(core.ledger.accounts),
        engines=tuple(
            EngineStatus(
                name=engine.name,
                running=len(engine.legs),
                slots=engine.slots,
                version=engine.version,
                loading=engine.loading,
            )
            for engine in scheduler.engines.values()
        ),
        queued=scheduler.queued,
        groups={state.value: count for state, count in core.group_index.counts.items()},
        at_rank={
            str(rank): core.group_index.at_rank.get(rank, 0) for rank in range(core.settings.ranks)
        },
        newest_step=_some(coordinator.steps.report.newest, _OF_A_STEP),
        newest_eval=_some(history[-1], _OF_AN_EVALUATION) if history else {},
        waits=_longest_waits(coordinator),
        acted=dict(coordinator.watchdog.acted),
        refused={"epoch": core.ledger.frames_refused, "late": core.ledger.chunks_late},
    )


def _some(metrics: dict[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    return {name: metrics[name] for name in names if metrics.get(name) is not None}


def _longest_waits(coordinator: Coordinator) -> tuple[WaitStatus, ...]:
    group_index = coordinator.core.group_index
    stages = (
        group_index.in_any_order(state)
        for state in (GroupState.SENT, GroupState.READY, GroupState.CHOSEN)
    )
    evaluated = (g for g in coordinator.core.groups.values() if g.kind == "eval")
    rest = evaluated if coordinator.evaluations.open else group_index.in_any_order(*OPEN_STATES)
    groups = chain(*(_oldest(found) for found in (*stages, rest)))
    found: dict[int, Wait] = {}
    for number, wait in enumerate(coordinator.waits.find(groups)):
        found.setdefault(wait.group if wait.group >= 0 else -1 - number, wait)
        if len(found) == LONGEST_WAITS:
            break
    limits, now = coordinator.core.settings.limits, coordinator.core.now
    return tuple(_told(wait, limits, now) for wait in found.values())


def _told(wait: Wait, limits: Timeouts, now: float) -> WaitStatus:
    rule, limit = RULES[wait.kind], limit_s(wait.kind, limits)
    return WaitStatus(
        seconds=round(now - wait.since, 2),
        what=wait.what,
        kind=wait.kind.value,
        by=rule.by,
        still_s=round(wait.still_s(now), 2),
        limit_s=limit if limit < math.inf else 0.0,
        then=(rule.action if limit < math.inf else OverdueAction.NONE).value,
    )


def _oldest(groups: Any) -> Iterator[Group]:
    """Those that came first, until so many members are reached."""
    members = 0
    for group in groups:
        yield group
        members += len(group.members)
        if members >= MOST_MEMBERS:
            return
