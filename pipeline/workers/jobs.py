"""Jobs of a worker pool, their results, and how they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

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


Result = Scored | Followed | RewardFailed | NoOpinion


class WorkerJob:
    """A sample for the plug-in, or a `whole` group that it judges together; `answer` gets a result
    for each, or the error of the call, once.

    Args:
        trajectories: whose answer is wanted; once none of them is, nor is the call.
    """

    def __init__(
        self,
        samples: Sequence[Sampled | Turn],
        trajectories: Iterable[int] = (),
        *,
        whole: bool = False,
    ) -> None:
        self.samples = tuple(samples)
        self.wanted = set(trajectories)
        self.whole = whole
        self.answer: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        self.alone = whole  # it must run in a call of its own: so must one whose batch has failed
        self.died = False  # a worker has died once while it ran alone

    def set_results(self, results: list[Result]) -> None:
        if not self.answer.done():  # else it was cancelled meanwhile
            self.answer.set_result(results)

    def set_failure(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
