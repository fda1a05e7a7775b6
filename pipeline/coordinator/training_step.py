"""One step: prompts in, groups taken, the barrier, training, the close.

Asks the prompts, budget and batch seams. A step opens prompts until enough
groups are at hand, closes (open groups finalize or are deferred), and is
finished when every taken group has been trained on: then, and only then, its
groups count as trained.
"""

from __future__ import annotations

import msgspec

from pipeline.coordinator import staleness
from pipeline.coordinator.events import (
    CloseStep,
    GroupFailed,
    GroupTrained,
    StepDone,
    StepSkipped,
)
from pipeline.coordinator.group_manager import GroupManager
from pipeline.coordinator.groups import ENDED, Group, GroupState, Trajectory, TrajectoryState
from pipeline.coordinator.learner_feed import train_group
from pipeline.coordinator.prompt_planner import PromptPlanner
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.selection import Selection
from pipeline.coordinator.state import CoordinatorState, PluginFault, plugin_guard
from pipeline.coordinator.step_metrics import (
    StepReport,
    learner_bubble,
    rollout_metrics,
    trained_metrics,
)
from pipeline.plugins.actions import BatchAction, Close, Relax, Take
from pipeline.plugins.interfaces import Barrier, Relaxed
from pipeline.plugins.views import BatchView

MOST_SKIPPED = 3
"""Steps skipped in a row after which the run stops."""


class StepState(msgspec.Struct, kw_only=True):
    """What a checkpoint keeps of the open step."""

    is_open: bool = False
    opened: int = 0  # groups opened for this step so far
    closing: bool = False
    exhausted: bool = False  # no more prompts, or no more tries
    speculate: bool = True  # False: a long round, no prompts and candidates beyond the need
    size: int = 0  # M, smaller after Relax
    skipped: int = 0  # steps skipped in a row
    since: float = 0.0
    sampled_before: int = 0  # tokens in the ledger when it opened
    trained_before: int = 0
    appended_before: int = 0
    turns_before: int = 0


class TrainingSteps:
    def __init__(
        self,
        core: CoordinatorState,
        scheduler: Scheduler,
        group_manager: GroupManager,
        selection: Selection,
    ) -> None:
        self._core, self._scheduler = core, scheduler
        self._group_manager, self._selection = group_manager, selection
        self.planner = PromptPlanner(core, scheduler, group_manager)
        self.state = StepState()
        self.needs_update = False  # the batch seam is to be asked, or the close to be tried
        self._wants_prompts = False  # wants prompts as soon as slots are idle
        self.finishing = False  # FinishStep has gone out
        self._unsent: list[Group] = []  # taken, to be sent when the others are in: overlap off
        self._last_active: Trajectory | None = None  # of an open group, when it was last looked for
        self._answered: dict[int, StepDone | StepSkipped] = {}
        self.report = StepReport(core, scheduler, group_manager, selection)
        self._nonfinite = 0
        self._rank_tokens: dict[int, int] = {}

    # --- a step from open to finish -----------------------------------------------------

    def open(self) -> None:
        core = self._core
        self.state = StepState(
            is_open=True,
            size=core.settings.size,
            skipped=self.state.skipped,
            since=core.now,
            sampled_before=core.ledger.sampled,
            trained_before=core.ledger.accounts["trained"],
            appended_before=core.ledger.appended,
            turns_before=core.ledger.turns,
        )
        if core.settings.max_staleness:
            for group in core.train_groups(GroupState.OPEN, GroupState.CHOSEN, GroupState.READY):
                if staleness.too_old(core, group):
                    self._group_manager.end(group, GroupState.DROPPED, "stale")
        self._scheduler.slot_usage.open(core.now)
        self.finishing, self._answered, self._nonfinite = False, {}, 0
        self.report.begin()
        self._rank_tokens = dict.fromkeys(range(core.settings.ranks), 0)
        group_manager = self._group_manager
        group_manager.lengths, group_manager.rewards, group_manager.parts, group_manager.fates = (
            [],
            [],
            {},
            {},
        )
        self._plan()
        self.advance()

    def restore(self, state: StepState) -> None:
        """Go on with the step that a checkpoint holds."""
        self.state = msgspec.structs.replace(state, skipped=0)  # a resume is a new try
        self.needs_update = True
        self._rank_tokens = dict.fromkeys(range(self._core.settings.ranks), 0)

    def changed(self) -> None:
        """A group became enough, ready, dropped or deferred."""
        self.needs_update = True

    def advance(self) -> None:
        """After every event: batch seam, new prompts, the close."""
        if self.finishing or not self.state.is_open:
            return
        if self._wants_prompts:
            self._plan()
        if not self.needs_update:
            return  # a chunk that ended nothing costs nothing here
        while self.needs_update:
            self.needs_update = False
            self._ask_batch()
            self._plan()
            if not self.needs_update:
                self._finish_if_all_trained()

    def _plan(self) -> None:
        """Open prompts while the step needs them and slots would otherwise idle."""
        core, state = self._core, self.state
        settings = core.settings
        self._wants_prompts = False
        if state.exhausted:
            return
        active = core.group_index.live
        ahead = staleness.ahead(core)
        coming = active - core.group_index.counts["open"] if ahead else active
        if state.closing and coming < settings.need:
            state.closing = False  # what was chosen taught nothing: open more
        if state.closing and not ahead:
            return
        limit = settings.need * (1 + ahead)
        room = int(settings.tries * limit) - state.opened
        reserve = settings.reserve if state.speculate else 0
        want = min(limit + reserve - active, room)
        if want < 1:
            if room < 1 and active < settings.need:
                self._exhaust("it has opened as many prompts as step.tries allows")
            return
        if state.opened and (self._scheduler.waiting() or not self._scheduler.idle()):
            self._wants_prompts = True
            return
        opened, state.speculate = self.planner.open(
            want, state.size, first=not state.opened, speculate=state.speculate
        )
        state.opened += opened
        if not opened and active < settings.need:
            self._exhaust("there are no more prompts")

    def _exhaust(self, why: str) -> None:
        self.state.exhausted = True
        self.needs_update = True
        self._core.report("warning", text=f"step {self._core.step + 1} closes smaller: {why}")

    @property
    def may_top_up(self) -> bool:
        """Whether more candidates of open groups are of use to this step."""
        state = self.state
        return state.is_open and state.speculate and not (state.closing or self.finishing)

    # --- the batch seam -----------------------------------------------------------------

    def _ask_batch(self) -> None:
        core, state = self._core, self.state
        counts = core.group_index.counts
        need = core.settings.need
        if state.exhausted:
            need = min(need, core.group_index.live)
        view = BatchView(
            step=core.step,
            need=need,
            taken=counts["taken"],
            ready=core.group_index.ready,
            chosen=counts["chosen"],
            enough=counts["enough"],
            open=counts["open"],
            size=state.size,
            group_size=core.settings.size,
            closing=state.closing,
            ahead=staleness.ahead(core),
            due=core.due_groups.ready if self._waits_for_due else (),
        )
        with plugin_guard(core.plugins.batch, "batch"):
            actions = list(core.plugins.batch.decide(view))
        for action in actions:
            self._carry_out(action)

    def _carry_out(self, action: BatchAction) -> None:
        core = self._core
        name = type(core.plugins.batch).__name__
        match action:
            case Take(groups=ids):
                for group_id in ids:
                    group = core.groups.get(group_id)
                    if group is None or group.stage is not GroupState.READY:
                        raise PluginFault(f"batch {name}: {action}: group {group_id} is not ready")
                    self._take(group)
            case Relax(size=size):
                if not 2 <= size <= core.settings.size:
                    raise PluginFault(f"batch {name}: {action}: size is 2 to {core.settings.size}")
                self.state.size = size
                for group in core.train_groups(GroupState.OPEN):
                    if not group.enough:  # the others have their members already
                        group.size = size
                        self._selection.ask(group, Relaxed())
            case Close():
                self._close()
            case _:
                raise PluginFault(f"batch {name}: {action}: no verb of a batch rule")

    def _take(self, group: Group) -> None:
        """To the rank with the least expected tokens; sent now unless overlap is off."""
        core = self._core
        tokens = sum(m.held for i in group.chosen if (m := group.member(i)) is not None)
        if group.rank < 0:  # else the rank that was hinted of it
            group.rank = min(self._rank_tokens, key=lambda rank: (self._rank_tokens[rank], rank))
        self._rank_tokens[group.rank] += tokens
        core.advance(group, GroupState.TAKEN)
        if core.settings.overlap == "off":
            self._unsent.append(group)
        else:
            self.send(group)

    def send(self, group: Group) -> None:
        """Hand a taken group to its rank, self-contained."""
        group.sent, group.trained_tokens = True, -1.0
        self._core.group_index.update(group)
        self._core.emit(train_group(group, self._core.step))

    def _close(self) -> None:
        """The barrier, in order of id; what stays open is deferred as surplus."""
        if self.state.closing:
            return
        self.state.closing = True
        for group in self._core.train_groups(GroupState.OPEN):
            if group.stage is GroupState.OPEN:
                self._selection.ask(group, Barrier())
        if not staleness.ahead(self._core):  # else they are for the next step
            for group in self._core.train_groups(GroupState.OPEN):
                self._group_manager.end(group, GroupState.DEFERRED, "surplus")
        self.needs_update = True

    @property
    def _waits_for_due(self) -> bool:
        """Whether the step waits for groups that the next one could not train on."""
        return self._core.settings.stale == "wait" and staleness.ahead(self._core) > 0

    def _finish_if_all_trained(self) -> None:
        core, state = self._core, self.state
        taken = core.group_index.counts["taken"]
        others = sum(core.group_index.counts.values()) > taken
        if staleness.ahead(core):
            due = self._waits_for_due and core.due_groups.exists
            others = due or (others and taken < core.settings.need)
        if others:
            if not state.closing and self._stands_still():
                self._close()  # only the barrier can end what is left
            return
        if not state.closing and not state.exhausted:
            return
        if not taken:
            self._finish_empty()
            return
        for group in sorted(self._unsent, key=lambda group: group.id):
            self.send(group)
        self._unsent = []
        if core.group_index.all_trained:
            self._finish(core.train_groups(GroupState.TAKEN))

    def _finish(self, taken: list[Group]) -> None:
        core = self._core
        total = sum(g.trained_tokens for g in taken)
        if total <= 0:
            for group in taken:
                self._group_manager.end(group, GroupState.DROPPED, "no weight")
            return
        self.finishing, self.report.normaliser = True, total
        core.emit(CloseStep(step=core.step, groups=tuple(g.id for g in taken), normaliser=total))

    def _stands_still(self) -> bool:
        """Nothing runs, waits or is being scored: every open member is parked until a publish.

        The member found last time usually still runs: the others are looked at when it has ended.
        """
        group_index = self._core.group_index
        if group_index.counts["chosen"] or group_index.counts["ready"] or self._scheduler.waiting():
            return False
        if self._last_active is None or not self._moves(self._last_active):
            members = (m for g in group_index.in_any_order(GroupState.OPEN) for m in g.members)
            self._last_active = next((m for m in members if self._moves(m)), None)
        return self._last_active is None

    def _moves(self, member: Trajectory) -> bool:
        """It runs, or its rollout or reward is asked, for an open group that it has not left."""
        core = self._core
        goes_on = member.state in (TrajectoryState.RUNNING, TrajectoryState.WAITING_ENV)
        if not goes_on and (member.scored or member.state not in ENDED):
            return False
        group = core.groups.get(member.group)
        here = core.trajectories.get(member.id) is member
        return (
            here and group is not None and group.kind == "train" and group.stage is GroupState.OPEN
        )

    def _finish_empty(self) -> None:
        """Nothing to learn from: the step ends without an update."""
        core = self._core
        self.state.is_open = False
        if self._nonfinite:
            self._skipped("every loss that it tried was not finite")
            return
        self.state.skipped = 0  # not in a row any more
        core.report("warning", text=f"step {core.step + 1}: no group with a signal, no update")
        self._report_step({}, {})
        core.step += 1

    # --- the learner answers ------------------------------------------------------------

    def trained(self, event: GroupTrained) -> None:
        group = self._core.groups.get(event.group)
        if group is None or group.stage is not GroupState.TAKEN or group.rank != event.rank:
            return
        group.trained_tokens = event.tokens
        self._core.group_index.update(group)
        self.needs_update = True
        self.report.add(event.metrics)

    def failed(self, event: GroupFailed) -> None:
        group = self._core.groups.get(event.group)
        if group is None or group.stage is not GroupState.TAKEN or group.rank != event.rank:
            return
        self._nonfinite += 1
        group.sent = False  # the rank has forgotten it already
        self._core.report("warning", text=f"group {group.id} dropped: {event.why}")
        self._group_manager.end(group, GroupState.DROPPED, "not finite")

    def applied(self, event: StepDone) -> int | None:
        """All ranks have stepped: returns the new version, None while some are missing."""
        core = self._core
        if not self._gather(event):
            return None
        taken = core.train_groups(GroupState.TAKEN)
        metrics = trained_metrics(taken) | staleness.of_trained(core, taken)
        for group in taken:
            self._group_manager.end(group, GroupState.TRAINED)
        self.state.is_open, self.state.skipped, self.finishing = False, 0, False
        ranks = [a.metrics for _, a in sorted(self._answered.items()) if isinstance(a, StepDone)]
        metrics |= learner_bubble(ranks, core.now - self.state.since)
        self._report_step(metrics, ranks[0])
        core.step += 1
        return event.version

    def rejected(self, event: StepSkipped) -> None:
        """All ranks refused the step: weights are as they were, the prompts come back."""
        if not self._gather(event):
            return
        for group in self._core.train_groups(GroupState.TAKEN):
            group.sent = False
            self._core.advance(group, GroupState.READY)
            self._group_manager.end(group, GroupState.DEFERRED, "step skipped")
        self.state.is_open, self.finishing = False, False
        self._skipped(event.why)

    def _gather(self, event: StepDone | StepSkipped) -> bool:
        if not self.finishing or event.step != self._core.step:
            return False
        self._answered[event.rank] = event
        return len(self._answered) == self._core.settings.ranks

    def owed_by(self, rank: int) -> bool:
        """Whether the rank has been asked for something and has not answered."""
        if self.finishing:
            return rank not in self._answered
        unsent = sum(group.rank == rank for group in self._unsent)
        return self._core.group_index.at_rank.get(rank, 0) > unsent

    def _skipped(self, why: str) -> None:
        self.state.skipped += 1
        self._core.report(
            "warning",
            text=f"step {self._core.step + 1} skipped ({self.state.skipped} in a row): {why}",
        )

    @property
    def too_many_skips(self) -> bool:
        return self.state.skipped >= MOST_SKIPPED

    def _report_step(self, metrics: dict[str, float], learner: dict[str, float]) -> None:
        state = self.state
        rollouts = rollout_metrics(self._core, state.turns_before, state.appended_before)
        self.report.write(
            rollouts | metrics,
            learner,
            opened=state.opened,
            since=state.since,
            sampled_before=state.sampled_before,
            trained_before=state.trained_before,
        )
