"""Handles the turns of a response: when one is over, the environment is asked what follows.

Turns the end of a turn into a question, and its answer into appended tokens and a
next leg, or the end of the response. The question holds all that the answer may
depend on, so it can be asked again after a resume. Appended tokens count against
the response's limit, and in no account of the ledger: they were not sampled.
"""

from __future__ import annotations

from pipeline.coordinator.events import CallEnvironment, TurnAnswered, TurnFailed
from pipeline.coordinator.groups import Trajectory, TrajectoryEvent, TrajectoryState
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.selection import Selection
from pipeline.coordinator.state import CoordinatorState


class Turns:
    def __init__(self, core: CoordinatorState, scheduler: Scheduler, selection: Selection) -> None:
        self._core, self._scheduler, self._selection = core, scheduler, selection
        self.heard = 0.0  # when one answered last, of whichever trajectory

    def ended(self, trajectory: Trajectory, finish: str) -> None:
        """The model has stopped by itself (`stop`), or where a limit stopped it (`length`)."""
        full = trajectory.held >= trajectory.max_tokens
        if self._core.settings.turns > trajectory.turns and not (full and finish == "length"):
            self._over(trajectory, finish)
        elif finish == "stop" and (not trajectory.turns or self._stop_token(trajectory)):
            self._end(trajectory, TrajectoryEvent.ENDED)
        else:  # a stop text after the last call, too: what it asks for never comes
            self._end(trajectory, TrajectoryEvent.HIT_LIMIT)

    def finish_of(self, trajectory: Trajectory) -> str:
        """Returns how the turn ended that the tokens held complete; '' if they complete none."""
        limit = self._core.settings.turn_tokens
        if self._stop_token(trajectory):
            return "stop"
        full = trajectory.held >= trajectory.max_tokens
        spent = limit and trajectory.held - trajectory.turn_began >= limit
        return "length" if full or spent else ""

    def answered(self, event: TurnAnswered) -> None:
        trajectory = self._asked(event.trajectory, event.turn)
        if trajectory is None:
            return  # not wanted any more
        count = len(event.tokens) // 4
        if event.over or not (count or not self._stop_token(trajectory)):
            self._end(trajectory, TrajectoryEvent.ENDED)  # nothing follows a stop token by itself
        elif trajectory.held + count >= trajectory.max_tokens:
            self._end(
                trajectory, TrajectoryEvent.HIT_LIMIT
            )  # no room for what the model would say to it
        else:
            trajectory.memory = event.memory
            self._append(trajectory, event.tokens, count)
            self._scheduler.continue_turn(trajectory)

    def failed(self, event: TurnFailed) -> None:
        trajectory = self._asked(event.trajectory, event.turn)
        if trajectory is not None:
            self._selection.give_up(trajectory, event.why)

    def ask(self, trajectory: Trajectory) -> None:
        """Put the question of one that is `calling`, for the first time or again."""
        self._core.environment_calls[trajectory.id] = self._core.now
        group = self._core.groups[trajectory.group]
        self._core.emit(
            CallEnvironment(
                kind=group.kind,
                prompt=group.prompt,
                group=group.id,
                trajectory=trajectory.id,
                turn=trajectory.turns - 1,
                tokens=bytes(trajectory.tokens),
                appended=tuple(trajectory.appended),
                finish=trajectory.turn_finish,
                left=trajectory.max_tokens - trajectory.held,
                memory=trajectory.memory,
                variant=trajectory.variant,
            )
        )

    def give_up(self, trajectory: int, why: str) -> None:
        """Nobody answers: as if the call had failed."""
        found = self._core.trajectories.get(trajectory)
        self._core.cancel_environment_call(trajectory)
        if found is not None:
            self.failed(TurnFailed(trajectory=trajectory, turn=found.turns - 1, why=why))

    def _over(self, trajectory: Trajectory, finish: str) -> None:
        trajectory.advance(TrajectoryEvent.TURN_OVER, self._core.now)
        trajectory.engine, trajectory.parked_until = "", ""
        trajectory.turns += 1
        trajectory.turn_finish = finish
        self._core.ledger.turns += 1
        if self._core.is_training(trajectory):
            self._core.stats.turns += 1
        self.ask(trajectory)

    def _append(self, trajectory: Trajectory, tokens: bytes, count: int) -> None:
        if count:
            trajectory.appended.append((trajectory.held, count))
            trajectory.appended_tokens += count
            trajectory.tokens += tokens
            trajectory.logprobs += bytes(len(tokens))
            self._core.ledger.appended += count
            if self._core.is_training(trajectory):
                self._core.stats.appended += count
        trajectory.turn_began = trajectory.held

    def _end(self, trajectory: Trajectory, cause: TrajectoryEvent) -> None:
        """The response is complete, or a limit stops it."""
        trajectory.advance(cause, self._core.now)
        trajectory.engine = ""
        trajectory.limited = cause is TrajectoryEvent.HIT_LIMIT
        self._selection.ended(trajectory)

    def _asked(self, trajectory: int, turn: int) -> Trajectory | None:
        self.heard = self._core.now
        found = self._core.trajectories.get(trajectory)
        if (
            found is None
            or found.state is not TrajectoryState.WAITING_ENV
            or found.turns - 1 != turn
        ):
            return None
        self._core.environment_calls.pop(trajectory, None)
        return found

    def _stop_token(self, trajectory: Trajectory) -> bool:
        return trajectory.last_token in self._core.settings.stop_tokens
