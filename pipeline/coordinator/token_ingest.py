"""Token frames become longer trajectories.

One rule for duplicates, gaps, late tokens and races: a chunk is accepted only
for its trajectory's current leg, and only at offset == tokens held. Frames are
fenced by epoch and numbered without gaps; a gap means a lost frame, and for
now a lost engine.
"""

from __future__ import annotations

import numpy as np

from pipeline.coordinator.engine_pool import EngineState
from pipeline.coordinator.events import Tokens
from pipeline.coordinator.groups import Trajectory, TrajectoryState
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.selection import Selection
from pipeline.coordinator.state import CoordinatorState
from pipeline.coordinator.turns import Turns

MOST_ERRORS = 3
"""Legs of one trajectory that engines may spoil before the member is given up."""


class TokenIngest:
    def __init__(self, core: CoordinatorState, scheduler: Scheduler, selection: Selection) -> None:
        self._core, self._scheduler, self._selection = core, scheduler, selection
        self.turns = Turns(core, scheduler, selection)

    def ingest_frame(self, event: Tokens) -> str:
        """Apply one frame. Returns '' or why the engine must be counted as lost."""
        core = self._core
        engine = self._scheduler.engines.get(event.engine)
        if engine is None or event.epoch != engine.epoch or event.sequence < engine.next_sequence:
            core.ledger.frames_refused += 1
            return ""
        if event.sequence > engine.next_sequence:
            return f"frame {event.sequence} came, {engine.next_sequence} was due"
        engine.next_sequence += 1
        newest = max((chunk.version for chunk in event.chunks), default=0)
        if newest > max(core.version, 0):
            return f"it says it serves version {newest}, the newest is {core.version}"
        arrived = len(event.tokens) // 4
        unseen = event.sampled - engine.sampled - arrived
        if unseen < 0:  # its count is not believed, and the frame is not applied
            return f"it counts {-unseen} tokens fewer than it sent"
        engine.sampled = event.sampled
        core.ledger.sample(unseen, "lost")
        self._apply(engine, event)
        return ""

    def _apply(self, engine: EngineState, event: Tokens) -> None:
        """The chunks in their order. Whoever is called on the way finds the books balanced."""
        core = self._core
        trajectories, name, listens = core.trajectories, engine.name, self._selection.listens
        tokens, logprobs = event.tokens, event.logprobs
        grown = 0  # tokens that are not in the books yet
        start = end = 0
        if event.chunks:
            engine.moved = moved = engine.own_time(core.now)
            leg_s, timed = 0.0, 0
            for chunk in event.chunks:
                if (leg := (chunk.trajectory, chunk.leg)) in engine.legs:
                    if chunk.count:
                        leg_s, timed = leg_s + moved - engine.legs[leg], timed + chunk.count
                    engine.legs[leg] = moved
            if measured := engine.meter.frame(moved, len(engine.legs), timed, leg_s):
                core.latency.blend(*measured)
        for chunk, total in zip(event.chunks, self._sums(event), strict=True):
            count, finish = chunk.count, chunk.finish
            start, end = end, end + 4 * count
            if finish:
                self._scheduler.released(engine, chunk.trajectory, chunk.leg)
            trajectory = trajectories.get(chunk.trajectory)
            if (
                trajectory is None
                or trajectory.state is not TrajectoryState.RUNNING
                or trajectory.leg != chunk.leg
                or trajectory.engine != name
            ):
                self._refuse(count)
                continue
            held = trajectory.tokens
            gap = len(held) != 4 * chunk.offset
            if gap or chunk.offset + count > trajectory.max_tokens:
                # A gap within the leg, or more than was asked for: resume from what we hold.
                core.ledger.sample(grown, "open")
                grown = 0
                self._refuse(count)
                self._scheduler.end_leg(trajectory)
                (self._resume if gap else self._failed)(trajectory)
                continue
            if count:
                starts = trajectory.version_starts
                if not starts or starts[-1][1] != chunk.version:
                    starts.append((len(held) // 4, chunk.version))
                    core.due_groups.note(core.groups[trajectory.group], core.version)
                held += tokens[start:end]
                trajectory.logprobs += logprobs[start:end]
                trajectory.logprob_sum += total
                grown += count
                if core.stats.between and core.is_training(trajectory):
                    core.stats.token_came(core.now)
                trajectory.remaining = chunk.remaining
                if trajectory.marked is None:
                    trajectory.marked = chunk.marked
                if chunk.score is not None:
                    trajectory.score = chunk.score
            if finish:
                core.ledger.sample(grown, "open")
                grown = 0
                self._finish(trajectory, finish)
            elif count and listens:
                core.ledger.sample(grown, "open")
                grown = 0
                self._selection.grown(trajectory, count)
        core.ledger.sample(grown, "open")

    @staticmethod
    def _sums(event: Tokens) -> list[float]:
        """Sum of logprobs of each chunk, by a few array operations a frame."""
        counts = np.array([chunk.count for chunk in event.chunks], dtype=np.int64)
        if not len(counts):
            return []
        ends = np.concatenate(([0.0], np.cumsum(np.frombuffer(event.logprobs, "<f4"), dtype="f8")))
        stops = np.cumsum(counts)
        return (ends[stops] - ends[stops - counts]).tolist()

    def _refuse(self, count: int) -> None:
        self._core.ledger.chunks_late += 1
        self._core.ledger.sample(count, "aborted")

    def _finish(self, trajectory: Trajectory, finish: str) -> None:
        if finish in ("stop", "length"):
            self.turns.ended(trajectory, finish)
        else:  # 'abort' or 'error' without our asking
            self._failed(trajectory)

    def _failed(self, trajectory: Trajectory) -> None:
        """Its leg ended by the engine's fault."""
        trajectory.errors += 1
        if trajectory.errors >= MOST_ERRORS:
            self._selection.give_up(trajectory, "errors of engines")
        else:
            self._resume(trajectory)

    def stalled(self, trajectory: Trajectory) -> None:
        """Its engine sends nothing of it: the leg is over, whatever the engine says to that."""
        self._scheduler.end_leg(trajectory)
        self._failed(trajectory)

    def _resume(self, trajectory: Trajectory) -> None:
        """Its leg is over; resume from the tokens held, unless they are complete."""
        if not self.end_if_complete(trajectory):
            self._scheduler.requeue(trajectory)

    def end_if_complete(self, trajectory: Trajectory) -> bool:
        """End the turn of a running one whose last token is a stop token, or which holds its
        maximum."""
        finish = self.turns.finish_of(trajectory)
        if finish:
            self.turns.ended(trajectory, finish)
        return bool(finish)
