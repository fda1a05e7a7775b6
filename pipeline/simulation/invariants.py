"""Checks what must hold of a coordinator after every event, whatever happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pipeline.coordinator import snapshot, staleness
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import Generate, TrainGroup
from pipeline.coordinator.foreign import SOLUTION
from pipeline.coordinator.group_index import LIVE_STATES
from pipeline.coordinator.groups import ENDED, Group, GroupState, Trajectory, TrajectoryState
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.state import CoordinatorState


class Violation(AssertionError):
    """Something that must never be; the message says what."""


def _hold(fact: bool, otherwise: str) -> None:
    if not fact:
        raise Violation(otherwise)


def check(coordinator: Coordinator, group_fates: Mapping[int, int]) -> None:
    """Books, slots, tables and prompts; `group_fates`: group -> how often it was reported ended.

    Raises: Violation, or SnapshotError if prompts are lost.
    """
    core, scheduler = coordinator.core, coordinator.scheduler
    _hold(core.ledger.imbalance == 0, "the ledger is off")
    _hold(core.ledger.sampled == scheduler.total_reported, "engines count other tokens")
    _hold(min(core.ledger.accounts.values()) >= 0, "an account is below zero")
    live = [
        m for g in core.groups.values() for m in g.members if m.state is not TrajectoryState.ABORTED
    ]
    parked = sum(m.own for m in live if m.state is TrajectoryState.PARKED)
    _hold(core.ledger.accounts["parked"] == parked, "parked tokens are not those counted")
    held = sum(m.own for m in live) - parked
    _hold(core.ledger.accounts["open"] == held, "open tokens are not those counted")
    _hold({m.id for m in live} == set(core.trajectories), "a trajectory is lost")
    for engine in scheduler.engines.values():
        _hold(len(engine.legs) <= engine.slots, "a slot is oversubscribed")
    for member in live:
        _hold(member.held <= member.max_tokens, "a trajectory is longer than its limit")
        if member.state is TrajectoryState.RUNNING:
            on = scheduler.engines.get(member.engine)
            known = on is not None and (member.id, member.leg) in on.legs
            _hold(known, f"trajectory {member.id} runs nowhere")
        arrived = member.id in core.groups[member.group].arrivals
        _hold((member.state in ENDED) == arrived, f"arrival of trajectory {member.id}")
        asked = not member.scored and arrived and _owed(core, core.groups[member.group], member)
        judged = member.id in coordinator.group_manager.awaiting_reward
        _hold(judged == asked, f"the reward of trajectory {member.id} is waited for, or not")
        _check_fork(core.groups[member.group], member)
        _check_foreign(core.groups[member.group], member)
    environment_calls = {m.id for m in live if m.state is TrajectoryState.WAITING_ENV}
    _hold(
        environment_calls == core.environment_calls.keys(), "an environment is waited for, or not"
    )
    _hold(
        coordinator.group_manager.awaiting_reward.keys() <= core.trajectories.keys(),
        "a reward is left behind",
    )
    stored, wants = coordinator.group_manager.foreign.stored, coordinator.core.wants
    _hold(len(stored) <= wants.stored, f"{len(stored)} successes are kept")
    _hold(all(i == kept.prompt for i, kept in stored.items()), "a success of another prompt")
    snapshot.check_prompts(coordinator)
    _hold(all(count == 1 for count in group_fates.values()), "a group ended twice")
    check_group_index(core)
    check_engine_pool(core, scheduler)


def _owed(core: CoordinatorState, group: Group, member: Trajectory) -> bool:
    """A reward is owed to what may be trained on; of one that is over a whole group, to the chosen,
    and in an audited group to all once nothing else is missing."""
    if group.kind != "train" or not core.settings.group_reward:
        return group.wants_reward(member)
    if group.state is not GroupState.CHOSEN:
        return False
    scored = all(m.scored for m in group.members if m.id in group.chosen)
    return member.id in group.chosen or (group.audited and scored and not group.unended)


def _check_fork(group: Group, member: Trajectory) -> None:
    """A fork begins as its origin, behind the same prompt; what it began with is not its own."""
    _hold((member.fork >= 0) == (member.prefix > 0), f"{member.id} is half a fork")
    _hold(member.own >= 0, f"trajectory {member.id} lacks tokens that it began with")
    origin = group.member(member.fork)
    if origin is None:
        return  # no fork, or it has left the group
    end = 4 * member.prefix
    same = (
        origin.tokens[:end] == member.tokens[:end]
        and origin.logprobs[:end] == member.logprobs[:end]
        and origin.variant == member.variant
    )
    _hold(same, f"trajectory {member.id} does not begin as {origin.id}")


def _check_foreign(group: Group, member: Trajectory) -> None:
    """A foreign member has ended, has no version, and is in no account; all others have one."""
    if not member.foreign:
        known = bool(member.version_starts) or not member.sampled
        _hold(known, f"trajectory {member.id} was sampled by no version")
        return
    _hold(member.state is TrajectoryState.FINISHED, f"{member.id} is foreign and not finished")
    _hold(not member.own and not member.version_starts, f"{member.id} is foreign and counted")
    _hold(not member.streamed, f"{member.id} is foreign and streamed")
    _hold(member.foreign in group.included, f"{member.id} is of no source that was included")
    logprobs = 0 if member.foreign == SOLUTION else len(member.tokens)
    _hold(len(member.logprobs) == logprobs, f"{member.id} has logprobs of other tokens")


def check_group_index(core: CoordinatorState) -> None:
    """Checks that the counts kept as groups move are those that counting all of them gives."""
    groups = [g for g in core.groups.values() if g.kind == "train"]
    index = core.group_index
    counts = dict.fromkeys(LIVE_STATES, 0) | Counter(g.state for g in groups)
    _hold(index.counts == counts, "groups are counted wrong")
    held = sum(1 for g in groups if g.held and g.is_open)
    _hold(index.held == held, "held groups are counted wrong")
    live = len(groups) - counts[GroupState.DEAD] - held
    _hold(index.live == live, "live groups are counted wrong")
    most = core.settings.hold
    few = sum(g.is_open and g.held and g.sampled < g.size for g in groups)
    _hold(not most or few <= most, f"{few} groups are held, at most {most} may be")
    for state in LIVE_STATES:
        here = [g for g in groups if g.state is state]
        _hold(core.train_groups(state) == here, f"a group is {state} and not found, or not {state}")
        _hold(len(list(index.in_any_order(state))) == len(here), f"{state}: not all are found")
    ready = tuple(g.id for g in groups if g.state is GroupState.READY)
    _hold(index.ready == ready, "ready groups are not those found")
    untrained = [g for g in groups if g.state in (GroupState.TAKEN, GroupState.SENT)]
    _hold(index.all_trained != bool(untrained), "all are trained on, or not")
    sent = Counter(g.rank for g in untrained if g.state is GroupState.SENT)
    _hold(+Counter(index.at_rank) == sent, "groups are at another rank")
    newest, k = core.version, core.settings.max_staleness
    if k and newest >= 0:
        due = staleness.due(index, newest, k)
        late = core.due_groups.any_due(newest)
        _hold(late == bool(due), "a group is due and not waited for, or not due")
        ready = tuple(g.id for g in due if g.state is GroupState.READY)
        _hold(
            core.due_groups.ready(newest) == ready, "ready groups that are due are not those found"
        )


def check_engine_pool(core: CoordinatorState, scheduler: Scheduler) -> None:
    """The same of engines."""
    engine_pool, engines = scheduler.engine_pool, scheduler.engines.values()
    serving = [e for e in engines if e.version == core.version >= 0]
    known = engine_pool.serving == {e.name: e for e in serving}
    _hold(known, "an engine serves and is not known to")
    _hold(engine_pool.slots == sum(e.slots for e in serving), "slots are miscounted")
    idle = sum(e.slots - len(e.legs) for e in serving)
    _hold(engine_pool.idle == idle, "idle slots are miscounted")
    knee = core.settings.knee or core.latency.knee()
    below = sum(max(0, min(e.slots, knee) - len(e.legs)) for e in serving)
    _hold(scheduler.idle_below_knee() == below, "idle slots below the knee are miscounted")
    free = [(len(e.legs) / e.slots, e.name) for e in serving if len(e.legs) < e.slots]
    emptiest = engine_pool.emptiest()
    found = emptiest.name if emptiest else ""
    _hold(found == min(free, default=(0.0, ""))[1], "the emptiest engine is another")


def check_train(coordinator: Coordinator, command: TrainGroup) -> None:
    """Checks a group that goes to the learner: each member once, no token too old.

    Raises: Violation.
    """
    core = coordinator.core
    oldest = core.version - core.settings.max_staleness
    group = core.groups[command.group]
    ids = [member.trajectory for member in command.members]
    _hold(len(set(ids)) == len(ids), f"group {group.id} trains on a member twice")
    if group.replay:
        bound = core.version - core.settings.keep_versions
        _hold(group.replay.version >= bound, f"group {group.id} replays what is too old")
        return
    for trajectory in ids:
        found = group.member(trajectory)
        _hold(found is not None, f"member {trajectory} is none of group {group.id}")
        young = found is not None and min(found.versions, default=oldest) >= oldest
        _hold(young, f"trajectory {trajectory} has tokens older than version {oldest}")
    variants = {m.id: m.variant for m in group.members if m.id in ids and m.variant}
    _hold(command.variants == variants, f"group {group.id} trains after other prompts")


def check_request(coordinator: Coordinator, command: Generate) -> None:
    """A request continues what is held, after the prompt that it was sampled after.

    Raises: Violation.
    """
    member = coordinator.core.trajectories.get(command.trajectory)
    if member is None or member.leg != command.leg:
        return  # withdrawn in the same answer
    _hold(command.variant == member.variant, f"{member.id} continues after another prompt")
    _hold(command.prefix == member.tokens, f"{member.id} continues other tokens than are held")
    _hold(
        0 < command.max_tokens <= member.max_tokens - member.held,
        f"{member.id} may sample {command.max_tokens}",
    )


def check_budget(coordinator: Coordinator, most: int) -> None:
    """No group was given more candidates than budgets may. Raises Violation."""
    for group in coordinator.core.groups.values():
        few = group.kind != "train" or group.sampled <= most
        _hold(few, f"group {group.id} has {group.sampled} candidates, at most {most}")
