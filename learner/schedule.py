"""What a learner rank does next: messages in, pieces of work out (sans-I/O).

Order: leave; begin anew; write a checkpoint (before groups that still wait,
after an optimizer step asked for earlier); then what came first. Groups of the
open step that wait together are trained on together, up to a token cap. Groups
of a later step wait until the open step is done: they would be trained on with
weights that are about to change. Pure.
"""

from __future__ import annotations

import msgspec

from pipeline.wire.messages import (
    CloseStep,
    ForgetGroup,
    Refused,
    Save,
    Shutdown,
    ToPeer,
    TrainGroup,
    Welcome,
)


class ScheduleError(Exception):
    """The stage sent what makes no sense here: a fault of darts, never of the user."""


class Train(msgspec.Struct, frozen=True):
    """Run forward and backward of these groups, all of the open step."""

    groups: tuple[TrainGroup, ...]


Work = Train | ForgetGroup | CloseStep | Save | Welcome | Shutdown | Refused


def tokens_of(group: TrainGroup) -> int:
    """What a pass over a group takes: its prompt once, and the responses."""
    return (len(group.prompt) + sum(len(member.response) for member in group.members)) // 4


class Schedule:
    """The queue of one rank. `put` what arrives, ask `next`, tell when a step is `done`."""

    def __init__(self, token_cap: int) -> None:
        self.open_step: int | None = None
        """The step whose groups are in the gradient."""
        self._token_cap = token_cap
        self._queue: list[TrainGroup | ForgetGroup | CloseStep | Save] = []
        self._first: Welcome | Shutdown | Refused | None = None

    def __len__(self) -> int:
        return len(self._queue) + (self._first is not None)

    def put(self, message: ToPeer) -> None:
        """Take a message of the stage. Raises ScheduleError for one that no learner gets."""
        match message:
            case Shutdown() | Refused():
                self._first = message
            case Welcome():
                # A new epoch: what the stage asked for before is no longer asked for.
                self._queue.clear()
                self.open_step = None
                if not isinstance(self._first, Shutdown | Refused):
                    self._first = message
            case ForgetGroup(group=group):
                kept = [
                    item
                    for item in self._queue
                    if not (isinstance(item, TrainGroup) and item.group == group)
                ]
                if len(kept) == len(self._queue):  # not waiting: it is in the gradient
                    kept.append(message)
                self._queue = kept
            case TrainGroup() | CloseStep() | Save():
                self._queue.append(message)
            case _:
                raise ScheduleError(f"{type(message).__name__} is no message for a learner")

    def next(self) -> Work | None:
        """The next piece of work, or None if there is nothing to do."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        for index, item in enumerate(self._queue):
            if isinstance(item, CloseStep):
                break
            if isinstance(item, Save):
                del self._queue[index]
                return item
        for index, item in enumerate(self._queue):
            if isinstance(item, TrainGroup):
                if self._waits(item):
                    continue
                return self._gather(index)
            if isinstance(item, CloseStep):
                if self.open_step not in (None, item.step):
                    raise ScheduleError(f"step {item.step} closes while {self.open_step} is open")
                self.open_step = item.step
            del self._queue[index]
            return item
        return None

    def done(self) -> None:
        """The open step has been applied, skipped, or holds no group any more."""
        self.open_step = None

    def _waits(self, item: TrainGroup) -> bool:
        if self.open_step is None:
            self.open_step = item.step
        if item.step < self.open_step:
            raise ScheduleError(
                f"group {item.group} belongs to step {item.step}, but {self.open_step} is open"
            )
        return item.step > self.open_step

    def _gather(self, start: int) -> Train:
        """Groups from `start` on, up to the token cap (one at least) or the next other message."""
        chosen: list[TrainGroup] = []
        rest = self._queue[:start]
        tokens = 0
        for index in range(start, len(self._queue)):
            item = self._queue[index]
            if not isinstance(item, TrainGroup):
                rest += self._queue[index:]
                break
            if self._waits(item) or (chosen and tokens + tokens_of(item) > self._token_cap):
                rest.append(item)
                continue
            chosen.append(item)
            tokens += tokens_of(item)
        self._queue = rest
        return Train(tuple(chosen))
