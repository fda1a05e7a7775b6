"""Jobs of a worker pool, their results, and how they fail."""

from __future__ import annotations

import asyncio

import msgspec

from pipeline.plugins.views import Sampled, Turn
from pipeline.workers.protocol import Follows


class RewardFailed(Exception):
    """A trajectory has no reward; `traceback` is that of the user's code, if there is one."""

    def __init__(self, why: str, traceback: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.traceback = traceback


class NoOpinion(Exception):
    """The reward has no opinion on this response: its reward is missing, nothing has failed."""


class Scored(msgspec.Struct, frozen=True):
    """A reward, and when its worker began and ended (monotonic clock, seconds)."""

    value: float
    parts: dict[str, float]
    times: tuple[float, float]


class Followed(msgspec.Struct, frozen=True):
    """An environment's answer, and when its worker began and ended."""

    follows: Follows
    times: tuple[float, float]


class WorkerJob:
    """One sample for the plug-in; `answer` gets the result or the error, once."""

    def __init__(self, sample: Sampled | Turn) -> None:
        self.sample = sample
        self.answer: asyncio.Future[Scored | Followed] = asyncio.get_running_loop().create_future()
        self.alone = False  # its batch has failed: it must run in a call of its own
        self.died = False  # a worker has died once while it ran alone

    def set_failure(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
