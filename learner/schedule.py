"""Decides what a learner rank does next: messages in, pieces of work out (sans-I/O).

Order: shut down; start again after a welcome; write a checkpoint (before waiting groups,
after an optimizer step requested earlier); then by arrival. Waiting groups of the open
step are trained on together, up to a token cap. Groups of a later step wait until the
open step is done: its update is about to change the weights. Pure.
"""

from __future__ import annotations

import msgspec

from pipeline.wire.messages import (
    CloseStep,
    CloseVersion,
    ForgetGroup,
    Refused,
    Save,
    Shutdown,
    ToPeer,
    TrainGroup,
    Welcome,
)


class ScheduleError(Exception):
    """The stage sent an impossible message: a fault of darts, never of the user."""


class Train(msgspec.Struct, frozen=True):
    """Run forward and backward over these groups, all of the open step."""

    groups: tuple[TrainGroup, ...]


Work = Train | ForgetGroup | CloseVersion | CloseStep | Save | Welcome | Shutdown | Refused


def tokens_of(group: TrainGroup) -> int:
    """Count the tokens of a pass over a group: each prompt once, and the responses."""
    prompts = {group.prompt, *(group.prompt_of(member) for member in group.members)}
    texts = [*prompts, *(member.response for member in group.members)]
    return sum(map(len, texts)) // 4


class Schedule:
    """The queue of one rank: `put` a message, take `next`, call `step_done` at a step's end."""

    def __init__(self, token_cap: int) -> None:
        self.open_step: int | None = None
        """The step whose groups are in the gradient."""
        self._token_cap = token_cap
        self._queue: list[TrainGroup | ForgetGroup | CloseVersion | CloseStep | Save] = []
        self._first: Welcome | Shutdown | Refused | None = None

    def __len__(self) -> int:
        return len(self._queue) + (self._first is not None)

    @property
    def must_go_on(self) -> bool:
        """True if what waits does not wait for `VersionClosed`: the stage has given it up."""
        waiting = any(isinstance(item, CloseStep | Save) for item in self._queue)
        return self._first is not None or waiting

    def put(self, message: ToPeer) -> None:
        """Queue a message of the stage. Raises ScheduleError for one that is not for a learner."""
        match message:
            case Shutdown() | Refused():
                self._first = message
            case Welcome():
                # A new epoch: earlier requests no longer count.
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
                if len(kept) == len(self._queue):  # not queued: it is in the gradient
                    kept.append(message)
                self._queue = kept
            case TrainGroup() | CloseVersion() | CloseStep() | Save():
                self._queue.append(message)
            case _:
                raise ScheduleError(f"{type(message).__name__} is not a message for a learner")

    def next(self) -> Work | None:
        """Return the next piece of work, or None if there is nothing to do."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        for index, item in enumerate(self._queue):
            if isinstance(item, CloseVersion | CloseStep):
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

    def step_done(self) -> None:
        """Close the open step: it was applied or skipped, or has no group left."""
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
        """Take groups from `start` on, up to the token cap (at least one) or another message."""
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
