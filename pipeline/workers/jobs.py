"""What is asked of a pool of workers, and what it may come to."""

from __future__ import annotations

import asyncio

import msgspec

from pipeline.plugins.views import Sampled, Turn
from pipeline.workers.protocol import Follows


class RewardFailed(Exception):
    """One trajectory has no reward; `traceback` is the user code's, where there is one."""

    def __init__(self, why: str, traceback: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.traceback = traceback


class NoOpinion(Exception):
    """The reward says nothing of this response: it is missing, and nothing has failed."""


class Scored(msgspec.Struct, frozen=True):
    """A reward, and when its worker began and ended, seconds of the monotonic clock."""

    value: float
    parts: dict[str, float]
    times: tuple[float, float]


class Followed(msgspec.Struct, frozen=True):
    """What an environment answered, and when its worker began and ended."""

    follows: Follows
    times: tuple[float, float]


class WorkerJob:
    """One sample that is asked about; `answer` hears what it came to, once."""

    def __init__(self, sample: Sampled | Turn) -> None:
        self.sample = sample
        self.answer: asyncio.Future[Scored | Followed] = asyncio.get_running_loop().create_future()
        self.alone = False  # a call that it was in has failed: no other is to suffer from it
        self.died = False  # under it alone, once

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
