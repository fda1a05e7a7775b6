"""A group's way from open to ready: asks the selector, carries out its actions.

An action is refused if it cannot be (an unknown id, a member that has not
ended, fewer than two) before it changes anything, with an error that names
the selector, the group and the action.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.coordinator import candidates, selection_bias
from pipeline.coordinator.evaluation import Evaluations
from pipeline.coordinator.group_advantages import GroupAdvantages, take
from pipeline.coordinator.group_manager import GroupManager
from pipeline.coordinator.group_view import STATE_NAMES, group_view
from pipeline.coordinator.groups import (
    ENDED,
    UNENDED,
    Group,
    GroupState,
    Trajectory,
    TrajectoryEvent,
    TrajectoryState,
)
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.staleness import too_old
from pipeline.coordinator.state import CoordinatorState, PluginFault, plugin_guard
from pipeline.plugins.actions import (
    Abort,
    Advantages,
    AnyAction,
    Defer,
    Drop,
    Enough,
    Finalize,
    Hold,
    Include,
    NoSignal,
    Park,
    Sample,
    Stop,
)
from pipeline.plugins.interfaces import Every, Finish, Rewarded, SelectorEvent
from pipeline.plugins.legality import Table, refusal
from pipeline.plugins.views import GroupView

UNDECIDED = "every member has ended and the selector left it open"


class Selection:
    def __init__(
        self,
        core: CoordinatorState,
        scheduler: Scheduler,
        group_manager: GroupManager,
        evaluations: Evaluations,
    ) -> None:
        self._core, self._scheduler = core, scheduler
        self._group_manager, self._evaluations = group_manager, evaluations
        self.rule = GroupAdvantages(core)
        self._ended_now: list[int] = []  # by actions of the answer at hand

    @property
    def _hears_rewards(self) -> bool:
        """Rewards over whole groups come after the selector's choice, so never to it."""
        return self._core.wants.reward and not self._core.settings.group_reward

    @property
    def listens(self) -> bool:
        """True if anything depends on the growth of running members."""
        return self._core.settings.stream or self._core.wants.every > 0

    # --- what happens to members --------------------------------------------------------

    def grown(self, trajectory: Trajectory, count: int) -> None:
        """A running member has so many new tokens."""
        self._group_manager.token_stream.stream_growth(trajectory)
        every, sampled = self._core.wants.every, trajectory.sampled
        if every and (sampled - count) // every != sampled // every:
            group = self._core.groups[trajectory.group]
            if group.kind == "train" and group.is_open:
                self.ask(group, Every(trajectory.id))

    def ended(self, trajectory: Trajectory) -> None:
        """A member is finished or truncated: score it, tell the selector."""
        core = self._core
        group = core.groups[trajectory.group]
        group.arrivals.append(trajectory.id)
        self._group_manager.token_stream.stream_growth(trajectory)
        self._group_manager.request_reward(group, trajectory)
        if group.kind == "train":
            core.stats.add_length(trajectory.sampled, core.forecast.fresh(group.prompt))
            core.forecast.ended(group.prompt, trajectory.sampled)
            if trajectory.state is TrajectoryState.FINISHED:
                core.statistics.finished(trajectory.confidence, trajectory.sampled)
            if group.is_open:
                self.ask(group, Finish(trajectory.id))

    def give_up(self, trajectory: Trajectory, why: str) -> None:
        """Give up a member that cannot be continued; its group continues without it."""
        group = self._core.groups[trajectory.group]
        self._core.report("warning", text=f"trajectory {trajectory.id}: given up after {why}")
        trajectory.ended_why = why
        self._group_manager.abort_member(trajectory, "failed")
        if group.state is GroupState.CHOSEN:  # audited: nothing else would end its wait
            self._ready_if_scored(group)
        self._nudge(group)

    def rewarded(
        self, trajectory_id: int, value: float | None, parts: dict[str, float], why: str
    ) -> None:
        """A reward is known (`value`), or failed (`why`)."""
        core = self._core
        trajectory = core.trajectories.get(trajectory_id)
        if trajectory is None or trajectory.scored:
            return  # not wanted any more
        self._group_manager.awaiting_reward.pop(trajectory_id, None)
        trajectory.scored, trajectory.reward, trajectory.parts = True, value, parts
        trajectory.reward_why = why
        group = core.groups[trajectory.group]
        if group.kind == "eval":
            self.check_evaluated(group)
            return
        core.rewards_moved = True
        if value is not None and not trajectory.foreign:
            core.statistics.rewarded(value)
            core.stats.add_reward(value, parts)
        if group.state is GroupState.CHOSEN:
            self._ready_if_scored(group)
        elif group.is_open:
            if self._core.wants.reward or value is None:
                self.ask(group, Rewarded(trajectory_id))
            if group.enough:
                self._check_signal(group)
            self._nudge(group)
            if any(m.state is TrajectoryState.PARKED for m in group.members):
                core.needs_update = True  # all that is left of the step may sleep now

    def version_known(self) -> None:
        """Continue groups whose rewards came before a resumed learner published."""
        for group in self._core.train_groups(GroupState.CHOSEN):
            self._ready_if_scored(group)

    def check_evaluated(self, group: Group) -> None:
        if all(m.scored or m.state is TrajectoryState.ABORTED for m in group.members):
            self._evaluations.add(group)
            self._group_manager.end(group, GroupState.EVALUATED)

    # --- the selector -------------------------------------------------------------------

    def ask(self, group: Group, event: SelectorEvent) -> None:
        """One question to the selector; its actions are carried out in their order."""
        selector = self._core.plugins.selector
        with plugin_guard(selector, "selector", group.id):
            actions = list(selector.decide(self.view(group), event))
        for action in actions:
            self._carry_out(group, action)
        ended, self._ended_now = self._ended_now, []
        for trajectory in ended:
            if group.is_open:  # it hears of what Stop has ended and Include has added
                self.ask(group, Finish(trajectory))
        self._nudge(group)

    def _nudge(self, group: Group) -> None:
        """Drops an open group whose members have all ended without a decision."""
        if group.kind == "eval":
            self.check_evaluated(group)
        elif (
            group.state is GroupState.OPEN
            and not group.held
            and not any(m.state in UNENDED for m in group.members)
            and not (self._hears_rewards and any(not m.scored for m in self._ended(group)))
        ):
            ended = [m for m in self._ended(group) if not m.reward_failed]
            few = f"{len(ended)} trajectories with a reward; an advantage needs two"
            self._group_manager.end(group, GroupState.DROPPED, few if len(ended) < 2 else UNDECIDED)

    @staticmethod
    def _ended(group: Group) -> list[Trajectory]:
        return [m for m in group.members if m.state in ENDED]

    def view(self, group: Group) -> GroupView:
        return group_view(self._core, group, self._group_manager.foreign.sources(group))

    def _fault(self, group: Group, action: AnyAction, why: str) -> PluginFault:
        name = type(self._core.plugins.selector).__name__
        return PluginFault(f"selector {name}, group {group.id}: {action}: {why}")

    def _refusal(self, group: Group, action: AnyAction) -> str:
        settings, forkable = self._core.settings, dict[int, int]()
        if isinstance(action, Sample) and action.fork:
            forkable = {m.id: candidates.forkable(settings, m) for m in group.members}
        found = refusal(
            Table(
                states={m.id: STATE_NAMES[m.state] for m in group.members},
                tokens={m.id: m.sampled for m in group.members},
                forkable=forkable,
                foreign=self._group_manager.foreign.sources(group),
                sampled=group.sampled,
                most=settings.most_candidates,
                closed="" if group.is_open else group.state.value,
            ),
            action,
        )
        if found or not isinstance(action, Sample):
            return found
        return candidates.variant_refusal(self._core, group, action)

    @staticmethod
    def _members(group: Group, ids: Sequence[int]) -> list[Trajectory]:
        return [member for i in ids if (member := group.member(i)) is not None]

    def _carry_out(self, group: Group, action: AnyAction) -> None:
        core, group_manager = self._core, self._group_manager
        if why := self._refusal(group, action):
            raise self._fault(group, action, why)
        core.hold(group, isinstance(action, Hold))
        match action:
            case Sample(n=n, variant=variant, fork=fork):
                group_manager.add_members(group, n, variant, fork)
            case Include(source=source):
                self._ended_now.append(group_manager.include(group, source).id)
            case Abort(ids=ids, why=why):
                self._abort(group, self._members(group, ids), why)
            case Stop(ids=ids, why=why):
                self._stop(group, self._members(group, ids), why)
            case Park(ids=ids, until=until):
                for member in self._members(group, ids):
                    self._scheduler.park(member, until)
                core.needs_update = True
            case Enough():
                if group.enough:
                    return  # said before
                core.advance(group, GroupState.ENOUGH)
                core.needs_update = True
            case Hold():
                core.needs_update = True
            case Finalize():
                self._finalize(group, action)
            case Defer(why=why, kind=kind):
                why = why or "deferred by the selector"
                group_manager.end(group, GroupState.DEFERRED, why, kind)
            case Drop(why=why, kind=kind):
                why = why or "dropped by the selector"
                group_manager.end(group, GroupState.DROPPED, why, kind)
        core.stats.add_kind(action.kind, chosen=isinstance(action, Finalize))
        core.report(
            "decision",
            group=group.id,
            prompt=group.prompt,
            action=type(action).__name__,
            ids=candidates.ids_of(action, group),
            why=action.why,
            **candidates.record(action),
            **({"kind": action.kind} if action.kind else {}),
        )
        if isinstance(action, Enough):
            self._check_signal(group)

    def _abort(self, group: Group, members: list[Trajectory], why: str) -> None:
        gone: list[Trajectory] = []  # at the group's end they are not among its members
        for member in members:
            member.ended_why = why
            if member.state in ENDED:
                group.arrivals.remove(member.id)
                group.members.remove(member)
                self._group_manager.close_member(member, "aborted")
                gone.append(member)
            else:
                self._group_manager.abort_member(member, "aborted")
        self._group_manager.keep_rollouts(group, gone)

    def _stop(self, group: Group, members: list[Trajectory], why: str) -> None:
        for member in members:
            member.ended_why = why
            if member.state is TrajectoryState.RUNNING:
                self._scheduler.end_leg(member)
            self._core.cancel_environment_call(member.id)
            if member.state is TrajectoryState.PARKED:
                self._core.ledger.move(member.own, "parked", "open")
            member.advance(TrajectoryEvent.STOPPED, self._core.now)
            group.arrivals.append(member.id)
            self._core.stats.lengths.append(member.sampled)
            self._group_manager.request_reward(group, member)
            self._ended_now.append(member.id)

    def _finalize(self, group: Group, action: Finalize) -> None:
        group.audited = self.audited  # then all members continue, to be compared
        for member in group.members:
            if member.state in UNENDED and not group.audited:
                self._group_manager.abort_member(member, "aborted")
        self._core.advance(group, GroupState.CHOSEN, action.why)
        group.chosen = list(action.ids)
        group.chosen_weights = list(action.weights or (1.0,) * len(action.ids))
        for member in self._ended(group):
            if not group.wants_reward(member):
                self._group_manager.cancel_reward(member)
        self._ready_if_scored(group)

    # --- rewards become advantages ------------------------------------------------------

    def _check_signal(self, group: Group) -> None:
        """A group that is enough and teaches nothing is replaced now, not after the barrier.

        It stays open all the same: its members that still run are the long ones, and where those
        are the wrong ones no other group trains on them. (Dropped at once: .92, not .96 accuracy.)
        """
        ids = [m.id for m in self._ended(group) if m.reward is not None]
        dead = len(ids) >= group.size and isinstance(self.rule.try_out(group, ids), NoSignal)
        if dead != (group.state is GroupState.DEAD):
            self._core.advance(group, GroupState.DEAD if dead else GroupState.ENOUGH)
            self._core.needs_update = True

    def _ready_if_scored(self, group: Group) -> None:
        self._group_manager.request_group_reward(group)
        members = [m for i in group.chosen if (m := group.member(i)) is not None]
        if any(not m.scored for m in members) or (
            group.audited and not selection_bias.settled(group)
        ):
            return
        if self._core.version < 0:
            return  # resumed, and the learner has yet to publish the version it starts from
        present = [m.id for m in members if m.reward is not None]
        if len(present) < 2:
            self._group_manager.end(group, GroupState.DROPPED, "fewer than two rewards")
            return
        if too_old(group, self._core.version, self._core.settings.max_staleness):
            self._group_manager.end(group, GroupState.DROPPED, "stale")
            return
        group.chosen_weights = [
            w for i, w in zip(group.chosen, group.chosen_weights, strict=True) if i in present
        ]
        group.chosen = present
        answer = self.rule.ask(group, present)
        if isinstance(answer, NoSignal):
            self._audit(group, answer)
            self._group_manager.end(group, GroupState.DROPPED, answer.why, answer.kind)
            return
        take(group, answer)
        self._core.stats.shaped += answer.shaped
        self._core.advance(group, GroupState.READY)
        self._audit(group, answer)
        self._core.needs_update = True

    # --- selection bias -----------------------------------------------------------------

    @property
    def audited(self) -> bool:
        """True if the open step is sampled to its end."""
        return selection_bias.due(self._core.step, self._core.settings.audit_every)

    def _audit(self, group: Group, trained: Advantages | NoSignal) -> None:
        if group.audited:
            sampled = self.rule.try_out(group, [m.id for m in selection_bias.whole(group)])
            self._core.stats.bias.add(group, sampled, trained, self._core.settings.eval_correct)
