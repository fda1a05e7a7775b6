"""A learner rank in virtual time: groups one after another, forwards of hinted tokens between.

Work that was asked for goes first, in its order; a hint's forward fills what is left of
the time. Pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from pipeline.coordinator.events import (
    AnyCommand,
    CloseStep,
    CloseVersion,
    DropStream,
    ForgetGroup,
    OldLogprobs,
    StreamTokens,
    TrainGroup,
    VersionClosed,
)
from pipeline.hardware.costs import LearnerCost
from pipeline.wire.messages import Piece


class Job(msgspec.Struct, kw_only=True):
    """A group to train on, a version to close, or the optimizer step."""

    group: int  # -1: no group
    seconds: float
    command: TrainGroup | CloseVersion | None = None  # None: the optimizer step


class ModelledLearner:
    """One rank. `start(now)` begins the next job and says when it is done."""

    def __init__(self, rank: int, cost: LearnerCost) -> None:
        self.rank, self._cost = rank, cost
        self.current: Job | None = None
        self.learned: dict[int, TrainGroup] = {}  # groups of the open step, done or under way
        self._queue: deque[Job] = deque()
        self._streamed: deque[tuple[int, float]] = deque()  # (trajectory, seconds of forward)
        self._ahead: dict[int, float] = {}  # trajectory -> seconds of forward done
        self._idle_since = 0.0
        self.worked_s = self.logprob_s = self.hidden_s = 0.0  # in the open step

    # --- what it is asked ---------------------------------------------------------------

    def take(self, now: float, command: AnyCommand) -> None:
        """A command for this rank has arrived."""
        match command:
            case TrainGroup():
                self.train(now, command)
            case ForgetGroup():
                self.forget(now, command.group)
            case StreamTokens():
                self.hint(now, command)
            case DropStream():
                self.unhint(now, command.trajectories)
            case CloseVersion():
                self.close_version(now, command)
            case CloseStep():
                self.finish(now)
            case _:
                raise AssertionError(f"{command} is not for a learner")

    def train(self, now: float, command: TrainGroup) -> None:
        self._think(now)
        tokens = sum(len(member.response) // 4 for member in command.members)
        forward_s = self._cost.forward_s * tokens
        done_s = sum(self._ahead.pop(m.trajectory, 0.0) for m in command.members)
        self.logprob_s += forward_s
        self.hidden_s += min(done_s, forward_s)
        seconds = self._cost.group_s + self._cost.train_s * tokens + max(0.0, forward_s - done_s)
        self._queue.append(Job(group=command.group, seconds=seconds, command=command))
        self.learned[command.group] = command

    def forget(self, now: float, group: int) -> None:
        self._think(now)
        self.learned.pop(group, None)
        self._queue = deque(job for job in self._queue if job.group != group)

    def hint(self, now: float, command: StreamTokens) -> None:
        self._think(now)
        seconds = self._cost.forward_s * (len(command.tokens) // 4)
        self._streamed.append((command.trajectory, seconds))
        self._ahead.setdefault(command.trajectory, 0.0)

    def unhint(self, now: float, trajectories: Iterable[int]) -> None:
        self._think(now)
        for trajectory in trajectories:
            self._ahead.pop(trajectory, None)

    def close_version(self, now: float, command: CloseVersion) -> None:
        """A forward of each response, less what was done ahead of it, then the answer."""
        self._think(now)
        for chunk in command.chunks:
            done_s = self._ahead.get(chunk.trajectory, 0.0)
            seconds = max(0.0, self._cost.forward_s * (len(chunk.tokens) // 4) - done_s)
            one = msgspec.structs.replace(command, chunks=(chunk,))
            self._queue.append(Job(group=-1, seconds=seconds, command=one))
        answer = msgspec.structs.replace(command, chunks=())
        self._queue.append(Job(group=-1, seconds=0.0, command=answer))

    def answers(self, command: CloseVersion) -> Iterator[OldLogprobs | VersionClosed]:
        """What it says after such a job: old logprobs, here all of -1 nat, or that it is done."""
        for chunk in command.chunks:
            nats = np.full(len(chunk.tokens) // 4, -1, "<f4").tobytes()
            pieces = (Piece(chunk.trajectory, 0, nats),)
            yield OldLogprobs(rank=self.rank, version=command.version, pieces=pieces)
        if not command.chunks:
            yield VersionClosed(rank=self.rank, version=command.version)

    def finish(self, now: float) -> None:
        """The optimizer step and the publish, after what is queued; a version that is still being
        closed is given up."""
        self._think(now)
        self._queue = deque(j for j in self._queue if not isinstance(j.command, CloseVersion))
        self._queue.append(Job(group=-1, seconds=self._cost.step_s + self._cost.publish_s))

    # --- what it does -------------------------------------------------------------------

    def start(self, now: float) -> float | None:
        """Begin the next job if none is under way; when it will be done."""
        if self.current is not None or not self._queue:
            return None
        self._think(now)
        self.current = self._queue.popleft()
        self.worked_s += self.current.seconds
        return now + self.current.seconds

    def done(self, now: float) -> Job:
        """The job under way has been done."""
        assert self.current is not None
        job, self.current = self.current, None
        self._idle_since = now
        return job

    def close_step(self) -> dict[str, float]:
        """The open step's figures, as a real rank reports them."""
        found = {
            "backward_s": self.worked_s - self._cost.step_s - self._cost.publish_s,
            "optimizer_s": self._cost.step_s,
            "publish_s": self._cost.publish_s,
            "logprob_s": self.logprob_s,
            "logprob_hidden_s": self.hidden_s,
        }
        self.worked_s = self.logprob_s = self.hidden_s = 0.0
        self.learned = {}
        return found

    def _think(self, now: float) -> None:
        """Spend the idle time up to now on hinted tokens, in order of arrival."""
        if self.current is not None:
            return
        left = now - self._idle_since
        self._idle_since = now
        while self._streamed and left > 0:
            trajectory, seconds = self._streamed[0]
            if trajectory not in self._ahead:  # it was taken back
                self._streamed.popleft()
                continue
            spent = min(left, seconds)
            self._ahead[trajectory] += spent
            left -= spent
            if spent < seconds:
                self._streamed[0] = (trajectory, seconds - spent)
            else:
                self._streamed.popleft()
