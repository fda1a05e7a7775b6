"""One step: prompts in, groups taken, the barrier, training, the close.

Asks the prompt order, the budget and the batch rule. A step opens prompts until enough
groups are at hand, closes (open groups finalize or are deferred), and is
finished when every taken group has been trained on: then, and only then, its
groups count as trained.
"""

from __future__ import annotations

import msgspec

from pipeline.coordinator.batch_view import batch_view
from pipeline.coordinator.events import CloseStep, GroupFailed, GroupTrained, StepDone, StepSkipped
from pipeline.coordinator.group_manager import GroupManager
from pipeline.coordinator.groups import (
    OPEN_STATES,
    TAKEN_STATES,
    Group,
    GroupState,
)
from pipeline.coordinator.learner_feed import train_group
from pipeline.coordinator.prompt_planner import PromptPlanner
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.selection import Selection
from pipeline.coordinator.staleness import BEFORE_TAKING, too_old, trained_staleness
from pipeline.coordinator.standstill import Standstill
from pipeline.coordinator.state import CoordinatorState, PluginFault, plugin_guard
from pipeline.coordinator.step_close import StepClose
from pipeline.coordinator.step_metrics import (
    StepReport,
    learner_bubble,
    trained_metrics,
)
from pipeline.plugins.actions import BatchAction, Close, Leave, Relax, Replay, Take
from pipeline.plugins.interfaces import Barrier, Relaxed

MOST_SKIPPED = 3
"""Steps skipped in a row after which the run stops."""


class StepState(msgspec.Struct, kw_only=True):
    """Progress of the open step, as a checkpoint keeps it."""

    is_open: bool = False
    opened: int = 0  # groups opened for this step so far
    closing: bool = False
    exhausted: bool = False  # no more prompts, or no more tries
    speculate: bool = True  # False: a long round, no prompts and candidates beyond the need
    size: int = 0  # M, smaller after Relax
    skipped: int = 0  # steps skipped in a row


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
        self._wants_prompts = False  # wants prompts as soon as slots are idle
        self.step_close = StepClose(core)
        self._unsent: list[Group] = []  # taken, to be sent when the others are in: overlap off
        self._standstill = Standstill(core, scheduler)
        self.report = StepReport(core, scheduler)
        self._rank_tokens: dict[int, int] = {}

    # --- a step from open to finish -----------------------------------------------------

    def open(self) -> None:
        core = self._core
        size, skipped = core.settings.size, self.state.skipped
        self.state = StepState(is_open=True, size=size, skipped=skipped)
        if core.settings.max_staleness:
            for group in core.train_groups(*BEFORE_TAKING):
                if too_old(group, core.version, core.settings.max_staleness):
                    self._group_manager.end(group, GroupState.DROPPED, "stale")
        self._scheduler.slot_usage.open(core.now)
        core.stats = core.stats.opened(core.ledger, core.now)
        self.step_close.open()
        self._rank_tokens = dict.fromkeys(range(core.settings.ranks), 0)
        if core.settings.keep:  # what is replayed needs no prompt
            self._ask_batch()
        self._plan()
        self.advance()

    def restore(self, state: StepState) -> None:
        """Go on with the step that a checkpoint holds."""
        self.state = msgspec.structs.replace(state, skipped=0)  # a resume is a new try
        self._core.needs_update = True
        self._rank_tokens = dict.fromkeys(range(self._core.settings.ranks), 0)

    def advance(self) -> None:
        """Ask the batch rule, open prompts and try to close; called after every event."""
        self.step_close.advance()
        if self.step_close.begun or not self.state.is_open:
            return
        if self._wants_prompts:
            self._plan()
        if not self._core.needs_update:
            return  # a chunk that ended nothing costs nothing here
        while self._core.needs_update:
            self._core.needs_update = False
            self._ask_batch()
            self._plan()
            if not self._core.needs_update:
                self._finish_if_all_trained()

    def _plan(self) -> None:
        """Open prompts while the step needs them and slots would otherwise idle."""
        core, state = self._core, self.state
        settings = core.settings
        self._wants_prompts = False
        if state.exhausted:
            return
        active = core.group_index.live
        ahead = core.ahead
        coming = active
        if ahead:  # the others that are open may be for a later step; those held count already
            coming -= core.group_index.counts[GroupState.OPEN] - core.group_index.held
        limit = settings.need * (1 + ahead)
        room = int(settings.tries * limit) - state.opened
        reserve = settings.reserve if state.speculate else 0
        want = min(limit + reserve - active, room, core.room_to_hold)
        blocked = bool(state.opened) and (self._scheduler.waiting() or not self._scheduler.idle())
        if state.closing and coming < settings.need:
            # What was chosen taught nothing: open more. Not so where nothing can be opened and
            # all sleeps until the step has ended: it would be raised again for ever.
            can_open = want > 0 and not blocked
            used_up = room < 1 and active < settings.need
            state.closing = not (can_open or used_up or not self._standstill.holds())
        if state.closing and not ahead:
            return
        if want < 1:
            if room < 1 and active < settings.need:
                self._exhaust("it has opened as many prompts as step.tries allows")
            return
        if blocked:
            self._wants_prompts = True
            return
        opened, state.speculate = self.planner.open(
            want, state.size, first=not state.opened, speculate=state.speculate
        )
        state.opened += opened
        few = active < settings.need or (coming < settings.need and self._standstill.holds())
        if not opened and few:
            self._exhaust("there are no more prompts")

    def _exhaust(self, why: str) -> None:
        self.state.exhausted = True
        self._core.needs_update = True
        self._core.report("warning", text=f"step {self._core.step + 1} closes smaller: {why}")

    @property
    def may_top_up(self) -> bool:
        """True if more candidates of open groups are of use to this step."""
        state = self.state
        return state.is_open and state.speculate and not (state.closing or self.step_close.begun)

    # --- the batch rule -----------------------------------------------------------------

    def _ask_batch(self) -> None:
        core, state = self._core, self.state
        need = core.settings.need
        if state.exhausted:
            need = min(need, core.group_index.live)
        view = batch_view(
            core,
            need=need,
            size=state.size,
            closing=state.closing,
            exhausted=state.exhausted,
            due=core.due_groups.ready(core.version) if self._waits_for_due else (),
            kept=self._group_manager.replay_buffer.views() if core.settings.keep else (),
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
                    if group is None or group.state is not GroupState.READY:
                        raise PluginFault(f"batch {name}: {action}: group {group_id} is not ready")
                    self._take(group)
            case Leave(groups=ids, why=why, kind=kind):
                for group_id in ids:
                    group = core.groups.get(group_id)
                    if group is None or group.state is not GroupState.READY:
                        raise PluginFault(f"batch {name}: {action}: group {group_id} is not ready")
                    why = why or "left by the batch rule"
                    self._group_manager.end(group, GroupState.DEFERRED, why, kind)
            case Replay(groups=ids):
                for group_id in ids:
                    if refusal := self._group_manager.replay_buffer.refusal(group_id):
                        raise PluginFault(f"batch {name}: {action}: {refusal}")
                    self._take(self._group_manager.replay_buffer.open(group_id))
            case Relax(size=size):
                if not 2 <= size <= core.settings.size:
                    raise PluginFault(f"batch {name}: {action}: size is 2 to {core.settings.size}")
                self.state.size = size
                for group in core.train_groups(GroupState.OPEN):  # the others have their members
                    group.size = size
                    self._selection.ask(group, Relaxed())
            case Close():
                self._close()
            case _:
                raise PluginFault(f"batch {name}: {action}: no action of a batch rule")
        core.stats.add_kind(getattr(action, "kind", ""))
        if action.why:
            core.report("batch", action=type(action).__name__, why=action.why)

    @property
    def _waits_for_all(self) -> bool:
        """True if advantages are given once all groups of the step are known."""
        return hasattr(self._core.plugins.advantage, "of_step")

    def _take(self, group: Group) -> None:
        """Give the group to the rank with the fewest tokens; send it unless overlap is off."""
        core = self._core
        tokens = sum(m.held for i in group.chosen if (m := group.member(i)) is not None)
        if group.replay:
            tokens = group.replay.tokens
        if group.rank < 0:  # else the rank that has its tokens
            group.rank = min(self._rank_tokens, key=lambda rank: (self._rank_tokens[rank], rank))
        self._rank_tokens[group.rank] += tokens
        core.advance(group, GroupState.TAKEN)
        if core.settings.overlap == "off" or self._waits_for_all:
            self._unsent.append(group)
        else:
            self.send(group)

    def send(self, group: Group) -> None:
        """Hand a taken group to its rank, self-contained."""
        self._core.advance(group, GroupState.SENT)
        self._core.emit(train_group(group, self._core.step, self._core.version))

    def _close(self) -> None:
        """The barrier, in order of id; what stays open is deferred as surplus."""
        if self.state.closing:
            return
        self.state.closing = True
        for group in self._core.train_groups(*OPEN_STATES):
            if group.is_open:
                self._selection.ask(group, Barrier())
        if not self._core.ahead:  # else they are for the next step
            for group in self._core.train_groups(*OPEN_STATES):
                self._group_manager.end(group, GroupState.DEFERRED, "surplus")
        self._core.needs_update = True

    @property
    def _waits_for_due(self) -> bool:
        """True if the step waits for groups that the next one could not train on."""
        return self._core.settings.stale == "wait" and self._core.ahead > 0

    def _finish_if_all_trained(self) -> None:
        core, state = self._core, self.state
        taken = core.group_index.taken
        others = sum(core.group_index.counts.values()) > taken
        if core.ahead:
            due = self._waits_for_due and core.due_groups.any_due(core.version)
            others = due or (others and taken < core.settings.need)
        if others:
            if not self._standstill.holds() or self._wants_prompts:
                return
            if not state.closing:
                self._close()  # only the barrier can end what is left
                return
            # what is left sleeps until the step has ended: it ends with what there is
        if not state.closing and not state.exhausted:
            return
        if not taken:
            self._finish_empty()
            return
        if self._waits_for_all:
            self._selection.rule.of_step(self._unsent)
        for group in sorted(self._unsent, key=lambda group: group.id):
            self.send(group)
        self._unsent = []
        if core.group_index.all_trained:
            self._finish(core.train_groups(*TAKEN_STATES))

    def _finish(self, taken: list[Group]) -> None:
        core = self._core
        total = sum(g.trained_tokens for g in taken)
        if total <= 0:
            for group in taken:
                self._group_manager.end(group, GroupState.DROPPED, "no weight")
            return
        self.report.normaliser = total
        ids = tuple(group.id for group in taken)
        self.step_close.begin(CloseStep(step=core.step, groups=ids, normaliser=total))

    def _finish_empty(self) -> None:
        """Nothing to learn from: the step ends without an update."""
        core = self._core
        self.state.is_open = False
        if core.stats.nonfinite:
            self._skipped("every loss that it tried was not finite")
            return
        waiting = self._group_manager.deferred or sum(core.group_index.counts.values())
        if self.state.exhausted and not self.state.opened and not waiting:
            # Every step from here on would be as empty: the run ends with its data.
            done = f"after {core.step} of {core.settings.steps} steps"
            why = "the data is at its end: prompt_order has no more prompts"
            core.report("warning", text=f"{why}; the run ends {done}")
            core.settings = msgspec.structs.replace(core.settings, steps=core.step)
            return
        self.state.skipped = 0  # not in a row any more
        core.report("warning", text=f"step {core.step + 1}: no group with a signal, no update")
        self._report_step({}, {})
        core.step += 1
        self._scheduler.wake()  # what slept until now waits for no publish

    # --- the learner answers ------------------------------------------------------------

    def trained(self, event: GroupTrained) -> None:
        group = self._group_at(event)
        if group is None:
            return
        group.trained_tokens = event.tokens
        if group.state is GroupState.SENT:
            self._core.advance(group, GroupState.ACCUMULATED)
        self._core.needs_update = True
        self._core.stats.add_learner(event.metrics)

    def failed(self, event: GroupFailed) -> None:
        group = self._group_at(event)
        if group is None:
            return
        self._core.stats.nonfinite += 1
        self._core.advance(group, GroupState.READY)  # the rank has forgotten it already
        self._core.report("warning", text=f"group {group.id} dropped: {event.why}")
        self._group_manager.end(group, GroupState.DROPPED, "not finite")

    def _group_at(self, event: GroupTrained | GroupFailed) -> Group | None:
        """The group, if this rank is to train on it."""
        group = self._core.groups.get(event.group)
        if group is None or group.rank != event.rank or not group.is_sent:
            return None
        return group

    def applied(self, event: StepDone) -> int | None:
        """All ranks have stepped: returns the new version, None while some are missing."""
        core = self._core
        if not self.step_close.gather(event):
            return None
        taken = core.train_groups(*TAKEN_STATES)
        metrics = trained_metrics(taken) | trained_staleness(
            taken, core.version, core.settings.max_staleness
        )
        metrics |= self.step_close.metrics(taken)
        for group in taken:
            self._group_manager.end(group, GroupState.TRAINED)
        self.step_close.done()
        self.state.is_open, self.state.skipped = False, 0
        ranks = self.step_close.rank_metrics
        metrics |= learner_bubble(ranks, core.now - core.stats.since)
        self._report_step(metrics, ranks[0])
        core.step += 1
        return event.version

    def rejected(self, event: StepSkipped) -> None:
        """All ranks refused the step: weights are as they were, the prompts come back."""
        if not self.step_close.gather(event):
            return
        for group in self._core.train_groups(*TAKEN_STATES):
            self._core.advance(group, GroupState.READY)
            self._group_manager.end(group, GroupState.DEFERRED, "step skipped")
        self.step_close.done()
        self.state.is_open = False
        self._skipped(event.why)

    def _skipped(self, why: str) -> None:
        self.state.skipped += 1
        self._scheduler.wake()  # the step has ended, without an update
        self._core.report(
            "warning",
            text=f"step {self._core.step + 1} skipped ({self.state.skipped} in a row): {why}",
        )

    @property
    def too_many_skips(self) -> bool:
        return self.state.skipped >= MOST_SKIPPED

    def _report_step(self, metrics: dict[str, float], learner: dict[str, float]) -> None:
        self.report.write(metrics, learner, opened=self.state.opened)
