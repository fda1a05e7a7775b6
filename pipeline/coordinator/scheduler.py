"""Engines, their slots, and who gets a free one.

A slot is taken when a leg is placed and free again when the leg's finish has arrived
in band (or the engine is lost): a leg that was aborted still holds its slot until
then. Who waits, and who goes first, is in `waiting`.
"""

from __future__ import annotations

import math

from pipeline.coordinator.engine_pool import EngineEvent, EnginePool, EngineState
from pipeline.coordinator.events import Generate, LoadWeights
from pipeline.coordinator.groups import Trajectory, TrajectoryEvent, TrajectoryState
from pipeline.coordinator.slot_usage import SlotUsage
from pipeline.coordinator.state import CoordinatorState
from pipeline.coordinator.waiting import CONTINUED, LOST, PARKED, QUEUED, WaitingLegs
from pipeline.hardware.latency_model import LatencyModel


class Scheduler:
    def __init__(self, core: CoordinatorState) -> None:
        self._core = core
        self.engines: dict[str, EngineState] = {}
        self.engine_pool = EnginePool()
        self.slot_usage = SlotUsage()
        self._loading: dict[str, EngineState] = {}  # who began first comes first
        self.reported = 0  # tokens sampled by epochs that are over
        self.last_loss = 0.0  # of an engine, when
        self._waiting = WaitingLegs(core)

    # --- engines ------------------------------------------------------------------------

    def join(
        self, name: str, epoch: int, slots: int, latency: tuple[tuple[int, float], ...] = ()
    ) -> None:
        self.engines[name] = EngineState(name=name, epoch=epoch, slots=slots)
        self.slot_usage.change(self._core.now, slots=slots)
        if latency:
            self._core.latency = LatencyModel(latency)
        if self._core.version >= 0:
            self.serve(self.engines[name])

    def serve(self, engine: EngineState) -> None:
        """Have it load the current version; it gets no request before it has proved it."""
        now = self._core.now
        if not engine.is_loading:
            engine.began_to_load = engine.owes_since = now
        engine.advance(EngineEvent.LOAD)
        engine.loading, engine.loading_since = self._core.version, now
        self._loading.pop(engine.name, None)
        self._loading[engine.name] = engine
        self._core.emit(LoadWeights(engine=engine.name, version=self._core.version))

    def admit(self, engine: EngineState) -> None:
        """It has proved the version that it was asked to load."""
        engine.held_up_s += self._core.now - engine.began_to_load
        engine.advance(EngineEvent.PROVED)
        engine.version, engine.loading, engine.refusals = engine.loading, -1, 0
        self._loading.pop(engine.name, None)
        if engine.version == self._core.version:
            self.engine_pool.admit(engine)

    def lose(self, name: str) -> list[Trajectory]:
        """The engine is gone. Returns the trajectories that ran on it, to be requeued."""
        engine = self.engines.pop(name)
        engine.advance(EngineEvent.LOST)
        self.engine_pool.dismiss(engine)
        self._loading.pop(name, None)
        self.last_loss = self._core.now
        self.slot_usage.change(self._core.now, busy=-len(engine.legs), slots=-engine.slots)
        self.reported += engine.sampled
        found = ((self._core.trajectories.get(i), leg) for i, leg in sorted(engine.legs))
        return [t for t, leg in found if t is not None and self._runs(t, leg)]

    def leg_moved(self, trajectory: Trajectory) -> float:
        """Time of the newest token of a running one, as if its engine had not loaded since."""
        engine = self.engines.get(trajectory.engine)
        moved = engine and engine.legs.get((trajectory.id, trajectory.leg))
        if engine is None or moved is None:
            return trajectory.since
        return self._core.now - (engine.own_time(self._core.now) - moved)

    @property
    def total_reported(self) -> int:
        """Response tokens sampled, by the engines' own counts."""
        return self.reported + sum(e.sampled for e in self.engines.values())

    def serving(self) -> list[EngineState]:
        """Engines that have proved the current version."""
        return list(self.engine_pool.serving.values())

    def idle(self) -> int:
        return self.engine_pool.idle

    def idle_below_knee(self) -> int:
        """Idle slots that cost almost no time when they are filled."""
        return self.engine_pool.idle_below(self._core.settings.knee or self._core.latency.knee())

    # --- legs ---------------------------------------------------------------------------

    def enqueue(self, trajectory: Trajectory, order: int = QUEUED) -> None:
        self._waiting.add(trajectory, order)

    def requeue(self, trajectory: Trajectory) -> None:
        """Its leg ended without an end: the next leg resumes it from the tokens held."""
        trajectory.advance(TrajectoryEvent.LEG_LOST, self._core.now)
        trajectory.leg += 1
        trajectory.engine = ""
        self.enqueue(trajectory, LOST)

    def continue_turn(self, trajectory: Trajectory) -> None:
        """Queue the next turn of a response whose environment has answered."""
        trajectory.advance(TrajectoryEvent.CONTINUED, self._core.now)
        if trajectory.parked_until:
            self.park(trajectory, trajectory.parked_until)
        else:
            trajectory.leg += 1
            self.enqueue(trajectory, CONTINUED)

    def park(self, trajectory: Trajectory, until: str) -> None:
        """Take it off its engine, with its tokens. One that waits for its environment holds no
        slot: it is parked once that has answered."""
        if trajectory.state is TrajectoryState.WAITING_ENV:
            trajectory.parked_until = until
            return
        if trajectory.state is TrajectoryState.RUNNING:
            self.end_leg(trajectory)
        trajectory.advance(TrajectoryEvent.SHELVED, self._core.now)
        trajectory.leg += 1
        trajectory.parked_until = until
        self._core.ledger.move(trajectory.own, "open", "parked")
        if until == "slot":
            self.enqueue(trajectory, PARKED)

    def wake(self) -> None:
        """The step has ended: what was parked until then may continue."""
        for trajectory in self._core.trajectories.values():
            if trajectory.parked_until != "published":
                continue
            if trajectory.state is TrajectoryState.PARKED:
                trajectory.parked_until = "slot"
                self.enqueue(trajectory, PARKED)
            elif trajectory.state is TrajectoryState.WAITING_ENV:
                trajectory.parked_until = ""  # what it was to wait for has come

    def published(self) -> None:
        """Have every engine load new weights; what was parked for them may continue."""
        self.wake()
        version = self._core.version
        self.engine_pool.reset(e for e in self.engines.values() if e.version == version >= 0)
        for engine in self.engines.values():
            engine.refusals = 0
            self.serve(engine)

    def end_leg(self, trajectory: Trajectory) -> None:
        """Stop the running leg at the tokens held; what it still sends is late."""
        engine, leg = self.engines.get(trajectory.engine), (trajectory.id, trajectory.leg)
        if engine is not None and leg in engine.legs:
            engine.ending[leg] = engine.own_time(self._core.now)
        self._core.end_on_engine(trajectory.engine, *leg)
        trajectory.engine = ""

    def released(self, engine: EngineState, trajectory: int, leg: int) -> None:
        if (trajectory, leg) in engine.legs:
            self.engine_pool.end(engine, (trajectory, leg))
            self.slot_usage.change(self._core.now, busy=-1)

    @property
    def queued(self) -> int:
        """Number of legs that wait for a slot; a withdrawn one counts until its turn comes."""
        return len(self._waiting)

    def waiting(self) -> bool:
        """Is anything left to place?"""
        return self._waiting.first() is not None

    def place(self) -> None:
        """Give free slots to the waiting, the emptiest engine first."""
        share = self._share() if self.waiting() else 0.0
        self._waiting.look_anew()
        while (trajectory := self._waiting.first()) is not None:
            engine = self._engine_for(trajectory, share)
            if engine is None:
                return
            self._start(engine, self._waiting.take(engine))

    def _engine_for(self, trajectory: Trajectory, share: float) -> EngineState | None:
        """The emptiest engine that may take it, if there is one."""
        pool = self.engine_pool
        if not self._core.settings.kv_tokens:
            engine = pool.emptiest()
            return engine if engine and _below(engine, share) else None
        if self._waiting.refused(pool.idle):
            return None
        free = [engine for engine in pool.by_share() if _below(engine, share)]
        engine = next((e for e in free if self._waiting.has_room(e, trajectory)), None)
        if engine is None and free:
            self._waiting.refuse(pool.idle)
        return engine

    def _share(self) -> float:
        """Share of its slots that an engine may fill while others load: what fills all alike.

        Else the first to have proved new weights is filled to its last slot, and the others
        are idle beside it a moment later. One that loads for `log_wait_s` is not waited for.
        """
        slots, now = self.slot_usage.slots, self._core.now
        for engine in self._loading.values():
            if now - engine.loading_since < self._core.settings.log_wait_s:
                break  # those behind it began later
            slots -= engine.slots
        if slots <= self.engine_pool.slots:
            return 1.0
        return min(1.0, (len(self._waiting) + self.slot_usage.busy) / slots)

    def _start(self, engine: EngineState, trajectory: Trajectory) -> None:
        core, queued = self._core, trajectory.since
        if trajectory.state is TrajectoryState.PARKED:
            trajectory.advance(TrajectoryEvent.RESUMED, core.now)
            trajectory.parked_until = ""
            core.ledger.move(trajectory.own, "parked", "open")
        group = core.groups[trajectory.group]
        trajectory.advance(TrajectoryEvent.PLACED, core.now)
        trajectory.engine = engine.name
        self.engine_pool.start(engine, (trajectory.id, trajectory.leg), core.now)
        self.slot_usage.change(core.now, busy=1)
        core.ledger.prefilled_again += trajectory.held
        core.emit(
            Generate(
                engine=engine.name,
                kind=group.kind,
                prompt=group.prompt,
                trajectory=trajectory.id,
                leg=trajectory.leg,
                prefix=bytes(trajectory.tokens),
                max_tokens=self._room(trajectory),
                seed=core.seed_of(group, trajectory),
                since=queued,
                greedy=group.greedy,
                variant=trajectory.variant,
            )
        )

    def _room(self, trajectory: Trajectory) -> int:
        """Tokens that its next leg may sample: what the response and the turn have left."""
        room, limit = trajectory.max_tokens - trajectory.held, self._core.settings.turn_tokens
        return min(room, limit - trajectory.held + trajectory.turn_began) if limit else room

    def _runs(self, trajectory: Trajectory, leg: int) -> bool:
        return trajectory.state is TrajectoryState.RUNNING and trajectory.leg == leg


def _below(engine: EngineState, share: float) -> bool:
    """Whether less than this share of its slots is in use."""
    return len(engine.legs) < math.ceil(share * engine.slots)
