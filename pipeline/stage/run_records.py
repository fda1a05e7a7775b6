"""All that a stage writes into the run's folder: its records, and the responses of its steps."""

from __future__ import annotations

import logging

import msgspec

from pipeline.coordinator.events import KeepRollouts
from pipeline.coordinator.state import CoordinatorState
from pipeline.observability import rollout_files
from pipeline.observability.recorder import Records
from pipeline.stage.build import Parts
from pipeline.stage.rollout_writer import RolloutWriter

log = logging.getLogger("stage")


class RunRecords(Records):
    """See `Records`; trackers with tables get some of the responses of every step.

    Args:
        reward_workers: see `timing.figures`.
    """

    def __init__(self, parts: Parts, reward_workers: int) -> None:
        config = parts.config
        super().__init__(
            parts.run,
            parts.resumed_step,
            config.metrics.trace_steps,
            timed=config.metrics.timing and not config.debug.ordered,
            reward_workers=reward_workers,
            trackers=parts.trackers,
        )
        self._folder = parts.run.rollouts
        self._rollouts = RolloutWriter(
            parts.run,
            config.rollouts,
            parts.data["train"],
            parts.tokenizer,
            tables=bool(config.metrics.wandb),
        )

    def keep(self, command: KeepRollouts) -> None:
        """Responses to which nothing more happens."""
        self._rollouts.keep(command)

    def forget_rollouts(self, restored: CoordinatorState) -> None:
        """Takes out what ended after the checkpoint that was restored: it will end again."""
        try:
            rollout_files.forget_after(
                self._folder, restored.step, restored.next_trajectory, restored.trajectories.keys()
            )
        except OSError as error:
            log.warning("rollouts of step %d may be there twice: %s", restored.step + 1, error)

    def flush(self) -> list[str]:
        """See `Records.flush`."""
        self._send_tables()
        return [*super().flush(), *self._rollouts.news()]

    def close_files(self) -> None:
        """See `Records.close_files`."""
        self._rollouts.close()
        self._send_tables()
        super().close_files()

    def close(self) -> list[str]:
        """See `Records.close`."""
        return [*super().close(), *self._rollouts.news()]

    def _send_tables(self) -> None:
        for step, lines in self._rollouts.tables():
            self.trackers.log_rollouts(step, [msgspec.structs.asdict(line) for line in lines])
