"""Takes the coordinator's state between two events, and restores it.

Running legs become queued with the tokens held, taken groups ready, and
evaluation groups are left out (an evaluation starts again): what the state
holds can continue anywhere. Checked against `issued = trained + dropped +
outstanding` at every save and load.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import AnyCommand, CallEnvironment, RequestReward
from pipeline.coordinator.foreign import Success
from pipeline.coordinator.groups import ENDED, Group, GroupState, Kept, TrajectoryState
from pipeline.coordinator.length_forecast import ForecastState, LengthForecast
from pipeline.coordinator.running_stats import RunningStatistics, StatisticsState
from pipeline.coordinator.step_stats import StepStats
from pipeline.coordinator.token_ledger import TokenLedger
from pipeline.coordinator.training_step import StepState
from pipeline.coordinator.waiting import LOST, PARKED, QUEUED

FORMAT = 4


class SnapshotError(Exception):
    """The state does not add up, or was written by another version."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the coordinator needs to continue."""

    format: int
    step: int
    version: int
    next_group: int
    next_trajectory: int
    groups: list[Group]
    kept: list[Kept]  # groups that may be trained on again, oldest first
    stored: list[Success] = []  # newest success of each prompt, oldest first
    deferred: list[tuple[int, int]]
    issued: int
    trained: int
    dropped: int
    ledger: TokenLedger
    reported: int  # tokens sampled by the engines' own counts
    statistics: StatisticsState
    forecast: ForecastState = ForecastState()
    open_step: StepState
    stats: StepStats  # of that step
    last_evaluation: int
    evaluations: list[dict[str, int | float]]
    plugins: dict[str, Any]  # plug-in kind -> its state


def check_prompts(coordinator: Coordinator) -> None:
    """issued = trained + dropped + outstanding. Raises SnapshotError."""
    group_manager = coordinator.group_manager
    outstanding = len(group_manager.outstanding) + len(group_manager.deferred)
    total = group_manager.ended_trained + group_manager.ended_dropped + outstanding
    if group_manager.issued != total:
        raise SnapshotError(
            f"{group_manager.issued} prompts issued, but {group_manager.ended_trained} trained + "
            f"{group_manager.ended_dropped} dropped + {outstanding} outstanding"
        )


def _settled(group: Group) -> Group:
    """A copy that holds nothing of engines, ranks and this process's clock."""
    copy = msgspec.msgpack.decode(msgspec.msgpack.encode(group), type=Group)
    copy.since = 0.0
    for member in copy.members:
        member.since, member.streamed = 0.0, 0
        if member.state is TrajectoryState.RUNNING:
            member.state, member.leg, member.engine = TrajectoryState.QUEUED, member.leg + 1, ""
    copy.trained_tokens, copy.rank = 0.0, -1
    if copy.is_taken:
        copy.state = GroupState.READY
    return copy


def take(coordinator: Coordinator) -> Snapshot:
    """The state now. Raises SnapshotError if the books do not balance."""
    check_prompts(coordinator)
    core, group_manager, steps = coordinator.core, coordinator.group_manager, coordinator.steps
    ledger = msgspec.msgpack.decode(msgspec.msgpack.encode(core.ledger), type=TokenLedger)
    for group in core.groups.values():
        if group.kind == "eval":
            for member in group.members:
                if member.state is not TrajectoryState.ABORTED:
                    ledger.move(member.own, "open", "eval")
    if ledger.imbalance:
        raise SnapshotError(f"the ledger is off by {ledger.imbalance} tokens")
    next_group, next_trajectory = _next_numbers(coordinator)
    return Snapshot(
        format=FORMAT,
        step=core.step,
        version=core.version,
        next_group=next_group,
        next_trajectory=next_trajectory,
        groups=[_settled(g) for g in core.groups.values() if g.kind == "train"],
        kept=list(group_manager.replay_buffer.kept.values()),
        stored=list(group_manager.foreign.stored.values()),
        deferred=list(group_manager.deferred),
        issued=group_manager.issued,
        trained=group_manager.ended_trained,
        dropped=group_manager.ended_dropped,
        ledger=ledger,
        reported=coordinator.scheduler.total_reported,
        statistics=core.statistics.state(),
        forecast=core.forecast.state(),
        open_step=msgspec.structs.replace(steps.state),
        stats=core.stats.saved(core.now),
        last_evaluation=coordinator.evaluations.last_step,
        evaluations=list(coordinator.evaluations.history),
        plugins={
            name: _state_of(name, plugin)
            for name in core.plugins.__struct_fields__
            if hasattr(plugin := getattr(core.plugins, name), "state")
        },
    )


def _next_numbers(coordinator: Coordinator) -> tuple[int, int]:
    """Next ids of groups and trajectories, less an evaluation that starts again: seeds follow
    from them, and a resumed run has to sample what it would have without the stop."""
    core = coordinator.core
    numbers = (core.next_group, core.next_trajectory)
    if coordinator.evaluations.untouched:
        group, trajectory = coordinator.evaluations.numbers_before
        members = (m for g in core.groups.values() if g.kind == "train" for m in g.members)
        if all(m.group < group and m.id < trajectory for m in members):
            return group, trajectory
    return numbers


def _state_of(kind: str, plugin: Any) -> Any:
    """Deep copy of the plug-in's state, exactly as a resume will decode it."""
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(plugin.state()))
    except (TypeError, ValueError, OverflowError) as error:  # of state(), or of what it gave
        raise SnapshotError(f"the state of {kind} {type(plugin).__name__}: {error}") from error


def restore(coordinator: Coordinator, snapshot: Snapshot, now: float) -> list[AnyCommand]:
    """Fill a fresh coordinator. Returns what must be asked again: rewards and environments
    that had not answered."""
    if snapshot.format != FORMAT:
        raise SnapshotError(f"state of format {snapshot.format}, this darts reads {FORMAT}")
    core, group_manager, steps = coordinator.core, coordinator.group_manager, coordinator.steps
    core.now = now
    core.step, core.version = snapshot.step, -1  # until the learner publishes it again
    core.next_group, core.next_trajectory = snapshot.next_group, snapshot.next_trajectory
    core.ledger = snapshot.ledger
    core.statistics = RunningStatistics(snapshot.statistics)
    core.forecast = LengthForecast(snapshot.forecast)
    group_manager.replay_buffer.kept = {kept.group: kept for kept in snapshot.kept}
    group_manager.foreign.stored = {success.prompt: success for success in snapshot.stored}
    group_manager.deferred.extend(snapshot.deferred)
    group_manager.issued = snapshot.issued
    group_manager.ended_trained, group_manager.ended_dropped = snapshot.trained, snapshot.dropped
    core.stats = msgspec.structs.replace(snapshot.stats, since=now - snapshot.stats.since)
    coordinator.run.restored = now
    steps.restore(snapshot.open_step)
    coordinator.evaluations.last_step = snapshot.last_evaluation
    coordinator.evaluations.history = snapshot.evaluations
    coordinator.scheduler.reported = snapshot.reported
    for name, state in snapshot.plugins.items():
        plugin = getattr(core.plugins, name)
        if not hasattr(plugin, "restore"):
            raise SnapshotError(f"{name} {type(plugin).__name__} cannot take back its state")
        plugin.restore(state)
    for group in snapshot.groups:
        group.since = now
        core.enter(group)
        if not group.replay:
            group_manager.outstanding[group.prompt] = group.attempt
        for member in group.members:
            member.since = now
            if member.state is TrajectoryState.ABORTED:
                continue
            core.trajectories[member.id] = member
            if member.state is TrajectoryState.QUEUED:
                # One that had a slot gets one first, also if it had no token yet.
                coordinator.scheduler.enqueue(member, LOST if member.leg else QUEUED)
            elif member.state is TrajectoryState.PARKED and member.parked_until == "slot":
                coordinator.scheduler.enqueue(member, PARKED)
            elif member.state is TrajectoryState.WAITING_ENV:
                coordinator.token_ingest.turns.ask(member)
            elif member.state in ENDED and not member.scored and group.wants_reward(member):
                group_manager.request_reward(group, member)
    check_prompts(coordinator)
    if core.ledger.imbalance:
        raise SnapshotError(f"the ledger is off by {core.ledger.imbalance} tokens")
    asked = core.take_out()
    assert all(isinstance(command, RequestReward | CallEnvironment) for command in asked)
    return asked  # type: ignore[return-value]
