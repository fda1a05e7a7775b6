"""The run as a whole: its phase, who has joined, and the waits that belong to no group.

The phase moves along a table; the diagram in the documentation is drawn from it.
"""

from __future__ import annotations

from enum import StrEnum

from pipeline.coordinator.groups import IllegalTransition


class RunPhase(StrEnum):
    STARTING = "starting"  # learner and engines are joining
    EVALUATING = "evaluating"
    TRAINING = "training"
    CLOSED = "closed"  # the last checkpoint is being written
    HALTING = "halting"  # Ctrl-C or an error: one checkpoint, then the end
    OVER = "over"


_STOPS = {RunPhase.CLOSED, RunPhase.HALTING, RunPhase.OVER}
RUN_TRANSITIONS: dict[RunPhase, frozenset[RunPhase]] = {
    RunPhase.STARTING: frozenset({RunPhase.EVALUATING, RunPhase.TRAINING, *_STOPS}),
    RunPhase.EVALUATING: frozenset({RunPhase.TRAINING, *_STOPS}),
    RunPhase.TRAINING: frozenset({RunPhase.TRAINING, RunPhase.EVALUATING, *_STOPS}),
    RunPhase.CLOSED: frozenset({RunPhase.OVER}),
    RunPhase.HALTING: frozenset({RunPhase.OVER}),
    RunPhase.OVER: frozenset(),
}
"""phase -> the phases that may follow; training follows itself at each step."""


class RunState:
    """State of the run that belongs to no part of the coordinator alone."""

    def __init__(self) -> None:
        self.phase = RunPhase.STARTING
        self.learners: set[int] = set()  # ranks that have joined
        self.checkpoint_since: float | None = None  # when the one being written was asked for
        self.checkpoint_s = 0.0  # that the last one took
        self.started = 0.0  # first tick
        self.restored: float | None = (
            None  # when a saved state was taken back, until all have joined
        )
        self.progressed = 0.0  # last time that a step, a group or a token moved
        self.reward_answered = 0.0  # last time that any reward came
        self.owing: dict[int, float] = {}  # rank -> since when it owes an answer

    @property
    def works(self) -> bool:
        """The run evaluates or trains."""
        return self.phase in (RunPhase.EVALUATING, RunPhase.TRAINING)

    def advance(self, phase: RunPhase) -> None:
        """Move along the table. Raises IllegalTransition and changes nothing."""
        legal = RUN_TRANSITIONS[self.phase]
        if phase not in legal:
            raise IllegalTransition("run", f"to {phase}", self.phase, sorted(legal))
        self.phase = phase
