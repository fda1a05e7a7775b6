"""The close of a step: the version's old logprobs first, then the optimizer step on all ranks.

Before the weights change, ranks are asked for the logprobs of every token that the present
version sampled and a later step may train on; `CloseStep` goes out when all have answered or
`close_s` has passed. What is missing then stays so (`old_logprobs.for_training`). What ranks
send of themselves, of streamed tokens, arrives here too. A piece that does not fit the
records is counted and ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.coordinator import old_logprobs
from pipeline.coordinator.events import (
    CloseStep,
    CloseVersion,
    OldLogprobs,
    StepDone,
    StepSkipped,
    VersionClosed,
)
from pipeline.coordinator.groups import Group, Trajectory, TrajectoryState
from pipeline.coordinator.staleness import BEFORE_TAKING, versions
from pipeline.coordinator.state import CoordinatorState
from pipeline.wire.fields import MAX_LOGPROB
from pipeline.wire.messages import Piece, StreamedChunk, floats

_MOST_BYTES = 32 << 20
"""Tokens of one order to a rank, half of what a message may hold. A rank that could compute as
many within `close_s` is not known."""


class StepClose:
    def __init__(self, core: CoordinatorState) -> None:
        self._core = core
        self.owing: set[int] = set()  # ranks that have not closed the version yet
        self.since = 0.0  # when they were asked
        self._order: CloseStep | None = None  # to go out when they have
        self._seconds = 0.0  # that the open step has waited for them
        self._refused = 0  # pieces that did not fit, in the open step
        self._answers: dict[int, StepDone | StepSkipped] = {}

    @property
    def begun(self) -> bool:
        """The groups of the step are fixed: its version is being closed, or `CloseStep` is out."""
        return self._order is not None or self._core.weights_move

    def open(self) -> None:
        """Another step has opened."""
        self._core.weights_move, self._order, self._answers = False, None, {}
        self.owing, self._seconds, self._refused = set(), 0.0, 0

    def begin(self, order: CloseStep) -> None:
        """The step is to close: at once, if its version leaves nothing to compute."""
        core = self._core
        self._order = order
        chunks: list[list[StreamedChunk]] = [[] for _ in range(core.settings.ranks)]
        prompts: list[dict[int, int]] = [{} for _ in range(core.settings.ranks)]
        variants: list[dict[int, str]] = [{} for _ in range(core.settings.ranks)]
        room = [_MOST_BYTES] * core.settings.ranks
        for group, member in self._unfinished():
            rank = group.rank if group.rank >= 0 else group.id % core.settings.ranks
            room[rank] -= len(member.tokens)
            if room[rank] < 0:
                continue
            prompts[rank][group.id] = group.prompt
            variants[rank] |= {member.id: member.variant} if member.variant else {}
            chunks[rank].append(StreamedChunk(group.id, member.id, 0, bytes(member.tokens)))
        self.since = core.now
        if any(chunks):  # where passes communicate all ranks have to take part
            self.owing = set(range(core.settings.ranks))
            for rank in self.owing:
                core.emit(
                    CloseVersion(
                        rank=rank,
                        version=core.version,
                        prompts=prompts[rank],
                        chunks=tuple(chunks[rank]),
                        variants=variants[rank],
                    )
                )
        self.advance()

    def advance(self) -> None:
        """Send `CloseStep` once no rank owes an answer."""
        if self._order is None or self.owing:
            return
        self._seconds = self._core.now - self.since
        self._core.emit(self._order)
        self._core.weights_move, self._order = True, None

    def give_up(self) -> None:
        """`close_s` has passed: the step closes with what is known."""
        self.owing = set()

    def _unfinished(self) -> list[tuple[Group, Trajectory]]:
        """Members that a later step may train on, with a token of this version and no old
        logprob for it."""
        core = self._core
        k, version = core.settings.max_staleness, core.version
        if not k or not core.settings.limits.close_s or core.step + 1 >= core.settings.steps:
            return []
        found: list[tuple[Group, Trajectory]] = []
        for group in core.train_groups(*BEFORE_TAKING):
            if min(versions(group), default=version) < version + 1 - k:
                continue  # too old for the next step: it will be dropped
            found += [
                (group, member)
                for member in group.members
                if member.state is not TrajectoryState.ABORTED
                and (not group.chosen or member.id in group.chosen)
                and old_logprobs.lacks(member, version)
            ]
        return found

    # --- what ranks answer --------------------------------------------------------------

    def received(self, event: OldLogprobs) -> None:
        """Keep what fits the records: of the present version, of tokens that are held."""
        for piece in event.pieces:
            member = self._core.trajectories.get(piece.trajectory)
            if member is not None and self._fits(event.version, piece, member):
                old_logprobs.keep(member, piece, event.version)
            elif member is not None or piece.trajectory >= self._core.next_trajectory:
                self._refused += 1  # else it has left its group since

    def _fits(self, version: int, piece: Piece, member: Trajectory) -> bool:
        values, entropies = floats(piece.logprobs), floats(piece.entropies)
        possible = np.isfinite(values) & (values <= MAX_LOGPROB)
        return (
            version == self._core.version
            and self._core.is_training(member)
            and piece.first + len(values) <= member.held
            and bool(possible.all() and np.isfinite(entropies).all())
        )

    def version_closed(self, event: VersionClosed) -> None:
        if event.version == self._core.version:
            self.owing.discard(event.rank)

    def gather(self, event: StepDone | StepSkipped) -> bool:
        """Take a rank's answer to `CloseStep`; returns True once all have answered."""
        core = self._core
        if not core.weights_move or event.step != core.step:
            return False
        self._answers[event.rank] = event
        return len(self._answers) == core.settings.ranks

    def done(self) -> None:
        """All have answered: what they had computed ahead is forgotten, on every rank."""
        self._core.weights_move = False
        for member in self._core.trajectories.values():
            member.streamed = 0

    @property
    def rank_metrics(self) -> list[dict[str, float]]:
        """Metrics of each rank that has applied the step, in order of rank."""
        answers = (answer for _, answer in sorted(self._answers.items()))
        return [answer.metrics for answer in answers if isinstance(answer, StepDone)]

    def owed_by(self, rank: int) -> bool:
        """Returns True if the rank was asked for something and has not answered."""
        if self.begun:
            return rank in self.owing or (self._core.weights_move and rank not in self._answers)
        return self._core.group_index.at_rank.get(rank, 0) > 0

    def metrics(self, taken: Sequence[Group]) -> dict[str, float]:
        """Figures of the step that ends, those of staleness only where there may be some."""
        core = self._core
        found: dict[str, float] = {"old_refused": self._refused} if self._refused else {}
        if core.settings.max_staleness:
            found |= old_logprobs.old_counts(taken, core.version)
            found["close_version_s"] = round(self._seconds, 4)
        return found
