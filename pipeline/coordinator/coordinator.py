"""The sans-I/O heart: (event, now) -> commands.

No sockets, no clock, no asyncio, no torch: the same events give the same
commands, always. The work is in the parts (`scheduler`, `token_ingest`,
`selection`, `training_step`); this file holds the table from event to handler, and the order of a
run: all join, evaluation, step, publish, and again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.coordinator.engine_manager import EngineManager
from pipeline.coordinator.evaluation import Evaluations
from pipeline.coordinator.events import (
    AbandonCheckpoint,
    AnyCommand,
    AnyEvent,
    CancelReward,
    Checkpoint,
    Checkpointed,
    EngineJoined,
    EngineLost,
    GroupFailed,
    GroupTrained,
    Halt,
    LearnerJoined,
    LearnerLost,
    OldLogprobs,
    Published,
    RewardMissing,
    RewardReady,
    Shutdown,
    StepDone,
    StepSkipped,
    Tick,
    Tokens,
    TurnAnswered,
    TurnFailed,
    VersionClosed,
    WeightsFailed,
    WeightsLoaded,
)
from pipeline.coordinator.group_manager import GroupManager
from pipeline.coordinator.groups import OPEN_STATES
from pipeline.coordinator.run_state import RunPhase
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.selection import Selection
from pipeline.coordinator.state import CoordinatorState, Plugins, Settings
from pipeline.coordinator.timeouts import RULES, OverdueAction, WaitKind
from pipeline.coordinator.token_ingest import TokenIngest
from pipeline.coordinator.training_step import TrainingSteps
from pipeline.coordinator.waits import Waits
from pipeline.coordinator.watchdog import Overdue, Watchdog
from pipeline.plugins.interfaces import Ticked, WeightsPublished

MOST_FAILED_CHECKPOINTS = 3
"""Checkpoints that fail in a row, after which the run stops: it would be trained for nothing."""
_AFTER_THE_CHECKPOINT = (Checkpointed, LearnerLost, Halt, Tick)
_ANSWERS = (GroupTrained, GroupFailed, VersionClosed, StepDone, StepSkipped)


class Coordinator:
    """Decides everything; a shell carries sockets, clock, files and processes."""

    def __init__(
        self,
        settings: Settings,
        plugins: Plugins,
        prompt_tokens: Sequence[int],
        tags: Sequence[str] = (),
        variants: Mapping[str, Sequence[int]] | None = None,
        solutions: Sequence[bytes] = (),
    ) -> None:
        """
        Args:
            prompt_tokens, tags: length and kind of each training prompt.
            variants: column of the data that may stand behind a prompt -> its tokens, for each.
            solutions: the data's response to each, int32; empty where it has none.
        """
        self.core = CoordinatorState(settings, plugins, prompt_tokens, tags, variants, solutions)
        self.run = self.core.run
        self.scheduler = Scheduler(self.core)
        self.evaluations = Evaluations(self.core)
        self.group_manager = GroupManager(self.core, self.scheduler)
        self.selection = Selection(self.core, self.scheduler, self.group_manager, self.evaluations)
        self.steps = TrainingSteps(self.core, self.scheduler, self.group_manager, self.selection)
        self.token_ingest = TokenIngest(self.core, self.scheduler, self.selection)
        self.engine_manager = EngineManager(self.core, self.scheduler, self.token_ingest)
        parts = (self.core, self.scheduler, self.group_manager, self.steps)
        self.waits = Waits(*parts, self.token_ingest.turns)
        self.watchdog = Watchdog(*parts, self.token_ingest.turns, self.waits)
        if not settings.ranks:
            self.core.version = 0  # nobody publishes one: engines keep the weights they began with
        self._checkpoint_step = -1  # of the newest one that was asked for
        self._checkpoints_failed = 0  # in a row
        self._final_checkpoint = False  # the one that is being written ends the run
        self.error = ""
        self._handlers: dict[type, Callable[[Any], None]] = {
            EngineJoined: self.engine_manager.joined,
            EngineLost: self.engine_manager.lost,
            Tokens: self.engine_manager.tokens,
            WeightsLoaded: self.engine_manager.served,
            WeightsFailed: self.engine_manager.refused,
            RewardReady: lambda e: self._rewarded(e.trajectory, e.value, e.parts, ""),
            RewardMissing: lambda e: self._rewarded(e.trajectory, None, {}, e.why),
            TurnAnswered: self.token_ingest.turns.answered,
            TurnFailed: self.token_ingest.turns.failed,
            LearnerJoined: lambda e: self.run.learners.add(e.rank),
            LearnerLost: self._learner_lost,
            Published: self._first_version,
            GroupTrained: self.steps.trained,
            GroupFailed: self.steps.failed,
            OldLogprobs: self.steps.step_close.received,
            VersionClosed: self.steps.step_close.version_closed,
            StepDone: self._applied,
            StepSkipped: self.steps.rejected,
            Checkpointed: self._checkpointed,
            Tick: self._tick,
            Halt: self._halt,
        }

    def handle(self, event: AnyEvent, now: float) -> list[AnyCommand]:
        """Take one event; return what is to be done about it, in order.

        Raises PluginFault when a plug-in asks for what cannot be: the run
        ends, and its last checkpoint is good.
        """
        self.core.now = now
        if (
            self.run.phase is RunPhase.HALTING
            and self._final_checkpoint
            and not isinstance(event, _AFTER_THE_CHECKPOINT)
        ):
            return []  # the run ends at this checkpoint: a resume does the rest again
        if isinstance(event, _ANSWERS):
            self.watchdog.rank_answered(event.rank)
        self._handlers[type(event)](event)
        self._settle()
        return self.core.take_out()  # type: ignore[return-value]

    # --- the order of a run -------------------------------------------------------------

    def _settle(self) -> None:
        """Move on as far as the event allows, then fill free slots."""
        if self.run.phase is RunPhase.HALTING:
            self._checkpoint_and_stop()
            return
        if self.run.phase in (RunPhase.CLOSED, RunPhase.OVER):
            return
        if self.run.phase is RunPhase.STARTING:
            everyone = len(self.run.learners) == self.core.settings.ranks
            if not (everyone and self.scheduler.serving()):
                return
            self._start_the_clock()
            self._next()
        if self.run.phase is RunPhase.EVALUATING and self.evaluations.done:
            if self.evaluations.last_step != self.core.step:
                self.evaluations.finish()
            if not self._best_is_kept():
                return
            self._next()
        if self.run.phase is RunPhase.TRAINING:
            if self.steps.may_top_up:  # before a step that stands still is closed
                self.steps.planner.after_rewards()
            self.steps.advance()
            while not self.steps.state.is_open and self.run.phase is RunPhase.TRAINING:
                if self.steps.too_many_skips:
                    self._halt(Halt(error="three steps in a row were skipped"))
                    self._checkpoint_and_stop()
                    return
                self._checkpoint_if_due()
                self._next()  # an empty or skipped step: no new version to wait for
                self.steps.advance()
        self.scheduler.place()
        if self.run.phase is RunPhase.TRAINING and self.steps.may_top_up:
            self.steps.planner.top_up()
            self.scheduler.place()

    def _start_the_clock(self) -> None:
        """Leave the start of engines and learner out of the time of a step that was open before."""
        if self.run.restored is not None:
            self.core.stats.since += self.core.now - self.run.restored
            self.run.restored = None

    def _next(self) -> None:
        """Begin what follows a publish: an evaluation if one is due, a step, or the end."""
        core = self.core
        if self.evaluations.due(final=core.step >= core.settings.steps):
            self.run.advance(RunPhase.EVALUATING)
            self.evaluations.begin(self.group_manager)
        elif core.step >= core.settings.steps:
            self.run.advance(RunPhase.CLOSED)
            self._checkpoint_if_due()  # unless one was begun when the step was done
            if self.run.checkpoint_since is None:
                self._end()
        else:
            self.run.advance(RunPhase.TRAINING)
            if not self.steps.state.is_open:
                self.steps.open()

    def _end(self) -> None:
        if self.run.phase is RunPhase.OVER:
            return
        self.run.advance(RunPhase.OVER)
        self.core.emit(Shutdown(error=self.error))

    # --- rewards ------------------------------------------------------------------------

    def _rewarded(
        self, trajectory: int, value: float | None, parts: dict[str, float], why: str
    ) -> None:
        self.run.reward_answered = self.core.now
        self.selection.rewarded(trajectory, value, parts, why)

    def _missing(self, overdue: Overdue) -> None:
        """Stop waiting for its reward, or for the answer of its environment."""
        if overdue.kind is WaitKind.ENVIRONMENT:
            self.token_ingest.turns.give_up(overdue.trajectory, overdue.line)
            return
        self.core.report("warning", text=overdue.line)
        self.core.emit(CancelReward(trajectory=overdue.trajectory))
        self.selection.rewarded(overdue.trajectory, None, {}, "its reward never came")

    # --- the learner --------------------------------------------------------------------

    def _first_version(self, event: Published) -> None:
        self.core.version = event.version
        self.scheduler.published()
        self.selection.version_known()

    def _applied(self, event: StepDone) -> None:
        version = self.steps.applied(event)
        if version is None:
            return
        core = self.core
        core.version = version
        self.scheduler.published()
        if self.core.wants.published:
            for group in core.train_groups(*OPEN_STATES):
                self.selection.ask(group, WeightsPublished())
        if self.run.phase is RunPhase.TRAINING:  # at a halt another checkpoint follows
            self._checkpoint_if_due()
            self._next()

    def _learner_lost(self, event: LearnerLost) -> None:
        """The learner's weights and optimizer are gone: only a checkpoint brings them back."""
        self.error = f"learner rank {event.rank} lost: {event.why}"
        self._end()

    # --- checkpoints and the end --------------------------------------------------------

    def _checkpoint_if_due(self) -> None:
        core = self.core
        every = core.settings.checkpoint_every
        due = every and (core.step % every == 0 or core.step == core.settings.steps)
        if not due or core.step in (0, self._checkpoint_step):
            return
        if self.run.checkpoint_since is None:
            self._checkpoint()
        elif core.step < core.settings.steps:  # that of the last step waits for its turn
            self.core.report(
                "warning",
                text=f"no checkpoint at step {core.step}: the one before is still being written",
            )

    def _best_is_kept(self) -> bool:
        """The best step so far (`eval.best`) gets a checkpoint, whenever others are due. False:
        once the one before is written."""
        if self.core.step in (0, self._checkpoint_step) or not self.evaluations.newest_is_best:
            return True
        if self.run.checkpoint_since is not None:
            return False
        self._checkpoint()
        return True

    def _checkpoint(self) -> None:
        self.run.checkpoint_since, self._checkpoint_step = self.core.now, self.core.step
        self.core.emit(Checkpoint(step=self.core.step, version=self.core.version))

    def _abandon_checkpoint(self) -> None:
        assert self.run.checkpoint_since is not None
        self.core.emit(
            AbandonCheckpoint(seconds=round(self.core.now - self.run.checkpoint_since, 1))
        )

    def _checkpointed(self, event: Checkpointed) -> None:
        if self.run.checkpoint_since is not None:
            self.run.checkpoint_s = self.core.now - self.run.checkpoint_since
        self.run.checkpoint_since = None
        self._checkpoints_failed = self._checkpoints_failed + 1 if event.error else 0
        if event.error:
            self.core.report("warning", text=f"no checkpoint at step {event.step}: {event.error}")
        if self._checkpoints_failed >= MOST_FAILED_CHECKPOINTS:
            many = f"{self._checkpoints_failed} checkpoints in a row failed"
            self._halt(Halt(error=f"{many}; the last: {event.error}"))
        if self.run.phase is RunPhase.CLOSED and event.step < self.core.step:
            self._checkpoint()  # the last one had to wait for this one
        elif self.run.phase is RunPhase.CLOSED or (
            self.run.phase is RunPhase.HALTING and self._final_checkpoint
        ):
            self._end()

    def _halt(self, event: Halt) -> None:
        if self.run.phase in (RunPhase.HALTING, RunPhase.CLOSED, RunPhase.OVER):
            self.error = self.error or event.error
            return
        self.error = event.error
        self.run.advance(RunPhase.HALTING)
        for trajectory in list(self.core.trajectories.values()):
            if trajectory.engine:  # legs end at the tokens held
                self.scheduler.end_leg(trajectory)
                if not self.token_ingest.end_if_complete(trajectory):
                    self.scheduler.requeue(trajectory)

    def _checkpoint_and_stop(self) -> None:
        """Begin the final checkpoint, once no optimizer step is under way."""
        if self.run.checkpoint_since is not None or self.core.weights_move:
            return
        ranks = self.core.settings.ranks
        if self.core.version < 0 or not ranks or len(self.run.learners) < ranks:
            self._end()  # nothing has begun, or a rank is not there to write its part
        else:
            self._final_checkpoint = True
            self._checkpoint()

    def outcome(self, train_seconds: float) -> dict[str, Any]:
        """`result.json`: rewards and lengths before and after, and where the tokens went."""
        history = self.evaluations.history
        first, last = (history[0], history[-1]) if history else ({}, {})
        return {
            "reward_before": first.get("reward"),
            "reward_after": last.get("reward"),
            "accuracy_before": first.get("accuracy"),
            "accuracy_after": last.get("accuracy"),
            "mean_tokens_before": first.get("tokens_mean"),
            "mean_tokens_after": last.get("tokens_mean"),
            "steps": self.core.step,
            "train_seconds": round(train_seconds, 2),
            "logprob_hidden_share": self.steps.report.hidden_share,
            **self.steps.report.mechanisms(),
            "weights_proved": self.core.weight_proofs.proved,
            "weights_unsure": self.core.weight_proofs.unsure,
            **self._pace(),
            "tokens": dict(self.core.ledger.accounts),
            "tokens_reported_by_engines": self.scheduler.total_reported,
            "engine_latency": [list(point) for point in self.core.latency.points],
        }

    def _pace(self) -> dict[str, Any]:
        """Return the emulated pace and how often an engine was slower; nothing without one."""
        name, counts = self.core.settings.paced, self.core.paced
        return {"paced": {"name": name, **msgspec.to_builtins(counts)}} if name else {}

    @property
    def unfinished(self) -> bool:
        """The run was stopped before its last step or its last evaluation."""
        core = self.core
        return core.step < core.settings.steps or self.evaluations.due(final=True)

    # --- time ---------------------------------------------------------------------------

    def _tick(self, event: Tick) -> None:
        del event
        self.steps.planner.tick()
        if self.core.wants.tick and self.run.phase is RunPhase.TRAINING:
            for group in self.core.train_groups(*OPEN_STATES):
                if group.is_open:
                    self.selection.ask(group, Ticked())
        if line := self.waits.overdue_line():
            self.core.report("wait", text=line)
        for overdue in self.watchdog.tick():
            self._act(overdue)

    def _act(self, overdue: Overdue) -> None:
        """Carry out the action that the table of timeouts names for an overdue wait."""
        match RULES[overdue.kind].action:
            case OverdueAction.RESTART:
                self.engine_manager.restart_engine(overdue.engine, overdue.line)
            case OverdueAction.REQUEUE:
                self.engine_manager.stalled(overdue.engine, overdue.trajectory, overdue.line)
            case OverdueAction.MISSING:
                self._missing(overdue)
            case OverdueAction.LOSE:
                self._learner_lost(LearnerLost(rank=overdue.rank, why=overdue.line))
            case OverdueAction.GIVE_UP:
                self._abandon_checkpoint()
            case OverdueAction.GO_ON:
                self.steps.step_close.give_up()
            case OverdueAction.STOP:
                self._halt(Halt(error=overdue.line))
            case OverdueAction.NONE:
                pass
