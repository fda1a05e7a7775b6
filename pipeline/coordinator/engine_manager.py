"""Manages engines: they join, prove weights, send tokens, and are lost.

Turns their events into calls of the scheduler and of token ingest. An engine whose frames
make no sense is lost at once and its process ended; its trajectories continue elsewhere.
"""

from __future__ import annotations

import math

import msgspec

from pipeline.coordinator.engine_pool import EngineState
from pipeline.coordinator.events import (
    EngineJoined,
    EngineLost,
    Restart,
    Tokens,
    WeightsFailed,
    WeightsLoaded,
)
from pipeline.coordinator.groups import TrajectoryState
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.state import CoordinatorState
from pipeline.coordinator.token_ingest import TokenIngest

MOST_REFUSALS = 3
"""Loads of one version that an engine may fail before it is restarted."""


class EngineManager:
    def __init__(
        self, core: CoordinatorState, scheduler: Scheduler, token_ingest: TokenIngest
    ) -> None:
        self._core, self._scheduler, self._intake = core, scheduler, token_ingest

    def joined(self, event: EngineJoined) -> None:
        if event.engine in self._scheduler.engines:
            self._lose(event.engine)
        self._scheduler.join(event.engine, event.epoch, event.slots, event.latency)
        self._core.report(
            "engine",
            engine=event.engine,
            epoch=event.epoch,
            slots=event.slots,
            latency=[list(point) for point in event.latency],
        )

    def lost(self, event: EngineLost) -> None:
        if event.engine in self._scheduler.engines:
            moved = self._lose(event.engine)
            self._core.report(
                "warning",
                text=f"engine {event.engine} lost ({event.why}); "
                f"{moved} trajectories go on elsewhere",
            )

    def restart_engine(self, engine: str, why: str) -> None:
        """It is lost, and its process is to be ended."""
        self.lost(EngineLost(engine=engine, why=why))
        self._core.emit(Restart(peer=engine, why=why))

    def tokens(self, event: Tokens) -> None:
        if why := self._intake.ingest_frame(event):
            self.restart_engine(event.engine, why)

    def stalled(self, engine: str, trajectory: int, line: str) -> None:
        """Move a trajectory of which no token comes to another engine."""
        running = self._core.trajectories.get(trajectory)
        if running is not None and running.engine == engine:
            self._core.report("warning", text=line)
            self._intake.stalled(running)

    def served(self, event: WeightsLoaded) -> None:
        engine = self._answer_to_a_load(event)
        if engine is None:
            return
        if not math.isfinite(event.gap) or event.gap > self._core.settings.gap_limit:
            self._failed_to_load(
                engine,
                f"probe differs by {event.gap:.2g} nats, limit {self._core.settings.gap_limit:.2g}",
            )
            return
        self._scheduler.admit(engine)
        self._core.weight_proofs.add(event)
        self._core.paced = self._core.paced.plus(event.paced)
        self._core.report(
            "served",
            engine=event.engine,
            version=event.version,
            gap=event.gap,
            proved=event.proved,
            tensors_checked=event.tensors_checked,
            tensors=event.tensors,
            **({"paced": msgspec.to_builtins(event.paced)} if event.paced.steps else {}),
        )

    def refused(self, event: WeightsFailed) -> None:
        engine = self._answer_to_a_load(event)
        if engine is not None:
            self._failed_to_load(engine, event.why)

    def _lose(self, engine: str) -> int:
        running = self._scheduler.lose(engine)
        for trajectory in running:
            if trajectory.state is not TrajectoryState.RUNNING:
                continue  # the end of one before it made the selector discard this one
            if not self._intake.end_if_complete(trajectory):
                self._scheduler.requeue(trajectory)
        return len(running)

    def _answer_to_a_load(self, event: WeightsLoaded | WeightsFailed) -> EngineState | None:
        """The engine, if this is about the version that it was asked for last."""
        engine = self._scheduler.engines.get(event.engine)
        if engine is None:
            return None
        engine.owes_since = self._core.now  # of an older version: it works, all the same
        return engine if event.version == engine.loading else None

    def _failed_to_load(self, engine: EngineState, why: str) -> None:
        engine.refusals += 1
        self._core.report("warning", text=f"engine {engine.name}, version {engine.loading}: {why}")
        if engine.refusals < MOST_REFUSALS:
            self._scheduler.serve(engine)
        else:
            self.restart_engine(engine.name, "it cannot load the weights")
