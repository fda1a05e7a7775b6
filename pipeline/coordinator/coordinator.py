"""The sans-I/O heart: (event, now) -> commands.

No sockets, no clock, no asyncio, no torch: the same events give the same
commands, always. The work is in the parts (`placement`, `intake`, `selection`,
`steps`); this file holds the table from event to handler, and the order of a
run: everybody joins, evaluation, step, publish, and again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from pipeline.coordinator import waits
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
    WeightsFailed,
    WeightsLoaded,
)
from pipeline.coordinator.group_manager import GroupManager
from pipeline.coordinator.groups import GroupState
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.selection import Selection
from pipeline.coordinator.state import CoordinatorState, Plugins, Settings
from pipeline.coordinator.timeouts import OverdueAction, WaitKind
from pipeline.coordinator.token_ingest import TokenIngest
from pipeline.coordinator.training_step import TrainingSteps
from pipeline.coordinator.watchdog import Overdue, Watchdog
from pipeline.plugins.interfaces import Ticked, WeightsPublished

MOST_FAILED_CUTS = 3
"""Checkpoints that fail in a row, after which the run stops: it would be trained for nothing."""
_AFTER_THE_CUT = (Checkpointed, LearnerLost, Halt, Tick)
_ANSWERS = (GroupTrained, GroupFailed, StepDone, StepSkipped)


class RunPhase(StrEnum):
    STARTING = "starting"  # learner and engines are joining
    EVALUATING = "evaluating"
    TRAINING = "training"
    CLOSED = "closed"  # the last checkpoint is being written
    HALTING = "halting"  # Ctrl-C or an error: one cut, then the end
    OVER = "over"


class Coordinator:
    """Decides everything; a shell carries sockets, clock, files and processes."""

    def __init__(
        self,
        settings: Settings,
        plugins: Plugins,
        prompt_tokens: Sequence[int],
        tags: Sequence[str] = (),
    ) -> None:
        self.core = CoordinatorState(settings, plugins, prompt_tokens, tags)
        self.scheduler = Scheduler(self.core)
        self.evaluations = Evaluations(self.core)
        self.group_manager = GroupManager(
            self.core, self.scheduler, on_change=lambda: self.steps.changed()
        )  # noqa: PLW0108
        self.selection = Selection(
            self.core,
            self.scheduler,
            self.group_manager,
            on_change=lambda: self.steps.changed(),  # noqa: PLW0108  made below
            on_evaluated=self._evaluated,
        )
        self.steps = TrainingSteps(self.core, self.scheduler, self.group_manager, self.selection)
        self.token_ingest = TokenIngest(
            self.core,
            self.scheduler,
            listens=lambda: self.selection.listens,
            on_growth=self.selection.grown,
            on_end=self.selection.ended,
            on_hopeless=self.selection.give_up,
        )
        self.engine_manager = EngineManager(self.core, self.scheduler, self.token_ingest)
        self.phase = RunPhase.STARTING
        self.learners: set[int] = set()
        self.cutting_since: float | None = None
        self.cut_step = -1  # of the newest one that was asked for
        self._cuts_failed = 0  # in a row
        self.final_checkpoint = False  # the one that is being written ends the run
        self.error = ""
        self.watch = waits.WaitReporter()
        self.watchdog = Watchdog(
            self,
            {
                OverdueAction.RESTART: lambda o: self.engine_manager.restart_engine(
                    o.engine, o.line
                ),
                OverdueAction.REQUEUE: lambda o: self.engine_manager.stalled(
                    o.engine, o.trajectory, o.line
                ),
                OverdueAction.MISSING: self._missing,
                OverdueAction.LOSE: lambda o: self._learner_lost(
                    LearnerLost(rank=o.rank, why=o.line)
                ),
                OverdueAction.GIVE_UP: lambda _: self._uncut(),
                OverdueAction.STOP: lambda o: self._halt(Halt(error=o.line)),
            },
        )
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
            LearnerJoined: lambda e: self.learners.add(e.rank),
            LearnerLost: self._learner_lost,
            Published: self._first_version,
            GroupTrained: self.steps.trained,
            GroupFailed: self.steps.failed,
            StepDone: self._applied,
            StepSkipped: self.steps.rejected,
            Checkpointed: self._checkpointed,
            Tick: self._tick,
            Halt: self._halt,
        }

    def handle(self, event: AnyEvent, now: float) -> list[AnyCommand]:
        """Take one event; return what is to be done about it, in order.

        Raises PluginFault when a plug-in asks for what cannot be: the run
        cannot go on, its last checkpoint is good.
        """
        self.core.now = now
        if (
            self.phase is RunPhase.HALTING
            and self.final_checkpoint
            and not isinstance(event, _AFTER_THE_CUT)
        ):
            return []  # the run ends at its cut: what comes after it is done again by a resume
        if isinstance(event, _ANSWERS):
            self.watchdog.rank_answered(event.rank)
        self._handlers[type(event)](event)
        self._settle()
        return self.core.take_out()  # type: ignore[return-value]

    # --- the order of a run -------------------------------------------------------------

    def _settle(self) -> None:
        """Move on as far as the event allows, then fill free slots."""
        if self.phase is RunPhase.HALTING:
            self._cut_and_stop()
            return
        if self.phase in (RunPhase.CLOSED, RunPhase.OVER):
            return
        if self.phase is RunPhase.STARTING:
            everyone = len(self.learners) == self.core.settings.ranks
            if not (everyone and self.scheduler.serving()):
                return
            self._next()
        if self.phase is RunPhase.EVALUATING and self.evaluations.done:
            if self.evaluations.last_step != self.core.step:
                self.evaluations.finish()
            if not self._best_is_kept():
                return
            self._next()
        if self.phase is RunPhase.TRAINING:
            self.steps.advance()
            while not self.steps.state.is_open and self.phase is RunPhase.TRAINING:
                if self.steps.too_many_skips:
                    self._halt(Halt(error="three steps in a row were skipped"))
                    self._cut_and_stop()
                    return
                self._cut_if_due()
                self._next()  # an empty or skipped step: no new version to wait for
                self.steps.advance()
        self.scheduler.place()
        if self.phase is RunPhase.TRAINING and self.steps.may_top_up:
            self.steps.planner.top_up()
            self.scheduler.place()

    def _next(self) -> None:
        """After a publish: evaluation when due, else the step, else the end."""
        core = self.core
        if self.evaluations.due(final=core.step >= core.settings.steps):
            self.phase = RunPhase.EVALUATING
            self.evaluations.begin(self.group_manager)
        elif core.step >= core.settings.steps:
            self.phase = RunPhase.CLOSED
            self._cut_if_due()  # unless it was cut when the step was done
            if self.cutting_since is None:
                self._end()
        else:
            self.phase = RunPhase.TRAINING
            if not self.steps.state.is_open:
                self.steps.open()

    def _end(self) -> None:
        if self.phase is RunPhase.OVER:
            return
        self.phase = RunPhase.OVER
        self.core.emit(Shutdown(error=self.error))

    # --- rewards ------------------------------------------------------------------------

    def _rewarded(
        self, trajectory: int, value: float | None, parts: dict[str, float], why: str
    ) -> None:
        self.watchdog.reward_answered()
        self.selection.rewarded(trajectory, value, parts, why)

    def _missing(self, overdue: Overdue) -> None:
        """Its reward, or what its rollout would say, is not waited for any more."""
        if overdue.kind is WaitKind.ROLLOUT:
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
        if self.selection.wants.published:
            for group in core.train_groups(GroupState.OPEN):
                self.selection.ask(group, WeightsPublished())
        if self.phase is RunPhase.TRAINING:  # at a halt another cut comes
            self._cut_if_due()
            self._next()

    def _learner_lost(self, event: LearnerLost) -> None:
        """The learner's weights and optimizer are gone: only a checkpoint brings them back."""
        self.error = f"learner rank {event.rank} lost: {event.why}"
        self._end()

    # --- checkpoints and the end --------------------------------------------------------

    def _cut_if_due(self) -> None:
        core = self.core
        every = core.settings.checkpoint_every
        due = every and (core.step % every == 0 or core.step == core.settings.steps)
        if not due or core.step in (0, self.cut_step):
            return
        if self.cutting_since is None:
            self._cut()
        elif core.step < core.settings.steps:  # that of the last step waits for its turn
            self.core.report(
                "warning",
                text=f"no checkpoint at step {core.step}: the one before is still being written",
            )

    def _best_is_kept(self) -> bool:
        """The best step so far (`eval.best`) gets a checkpoint, whenever others are due. False:
        once the one before is written."""
        if self.core.step in (0, self.cut_step) or not self.evaluations.newest_is_best:
            return True
        if self.cutting_since is not None:
            return False
        self._cut()
        return True

    def _cut(self) -> None:
        self.cutting_since, self.cut_step = self.core.now, self.core.step
        self.core.emit(Checkpoint(step=self.core.step, version=self.core.version))

    def _uncut(self) -> None:
        assert self.cutting_since is not None
        self.core.emit(AbandonCheckpoint(seconds=round(self.core.now - self.cutting_since, 1)))

    def _checkpointed(self, event: Checkpointed) -> None:
        self.cutting_since = None
        self._cuts_failed = self._cuts_failed + 1 if event.error else 0
        if event.error:
            self.core.report("warning", text=f"no checkpoint at step {event.step}: {event.error}")
        if self._cuts_failed >= MOST_FAILED_CUTS:
            many = f"{self._cuts_failed} checkpoints in a row failed"
            self._halt(Halt(error=f"{many}; the last: {event.error}"))
        if self.phase is RunPhase.CLOSED and event.step < self.core.step:
            self._cut()  # the last one had to wait for this one
        elif self.phase is RunPhase.CLOSED or (
            self.phase is RunPhase.HALTING and self.final_checkpoint
        ):
            self._end()

    def _halt(self, event: Halt) -> None:
        if self.phase in (RunPhase.HALTING, RunPhase.CLOSED, RunPhase.OVER):
            self.error = self.error or event.error
            return
        self.error = event.error
        self.phase = RunPhase.HALTING
        for trajectory in list(self.core.trajectories.values()):
            if trajectory.engine:  # legs end at the tokens held
                self.scheduler.end_leg(trajectory)
                if not self.token_ingest.end_if_complete(trajectory):
                    self.scheduler.requeue(trajectory)

    def _cut_and_stop(self) -> None:
        """No cut inside the optimizer step: wait for it, then cut once."""
        if self.cutting_since is not None or self.steps.finishing:
            return
        if self.core.version < 0 or len(self.learners) < self.core.settings.ranks:
            self._end()  # nothing has begun, or a rank is not there to write its part
        else:
            self.final_checkpoint = True
            self._cut()

    def outcome(self, train_seconds: float) -> dict[str, Any]:
        """`result.json`: accuracy and lengths before and after, and where the tokens went."""
        history = self.evaluations.history
        first, last = (history[0], history[-1]) if history else ({}, {})
        return {
            "accuracy_before": first.get("accuracy"),
            "accuracy_after": last.get("accuracy"),
            "mean_tokens_before": first.get("tokens_mean"),
            "mean_tokens_after": last.get("tokens_mean"),
            "steps": self.core.step,
            "train_seconds": round(train_seconds, 2),
            "logprob_hidden_share": self.steps.report.hidden_share,
            "tokens": dict(self.core.ledger.accounts),
            "tokens_reported_by_engines": self.scheduler.total_reported,
            "engine_latency": [list(point) for point in self.core.latency.points],
        }

    @property
    def unfinished(self) -> bool:
        """The run was stopped before its last step or its last evaluation."""
        core = self.core
        return core.step < core.settings.steps or self.evaluations.due(final=True)

    # --- time ---------------------------------------------------------------------------

    def _tick(self, event: Tick) -> None:
        del event
        self.steps.planner.tick()
        if self.selection.wants.tick and self.phase is RunPhase.TRAINING:
            for group in self.core.train_groups(GroupState.OPEN):
                if group.stage is GroupState.OPEN:
                    self.selection.ask(group, Ticked())
        if line := self.watch.overdue(self):
            self.core.report("wait", text=line)
        self.watchdog.tick()

    def _evaluated(self, group: Any) -> None:
        self.evaluations.add(group)
        self.group_manager.end(group, GroupState.EVALUATED)
