"""Ended trajectories -> scores, by a reward plug-in in worker processes of its own; and
whatever else runs user code beside the stage (`WorkerPool`).

User code never runs in the stage: what raises, hangs, crashes or answers nonsense
is a `RewardFailed` for that trajectory and nothing else. A call past its limit is
killed with whatever it had started. A crash is tried once more, since it may have
been the neighbour's memory; an exception or a timeout is not. No worker outlives
the process that made the pool.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import deque
from types import TracebackType
from typing import ClassVar, Self

import msgspec

from pipeline import plugins, reward_process
from pipeline.config import Plugin
from pipeline.confinement import Limits
from pipeline.reward_process import Died, WorkerProcess
from pipeline.reward_wire import Done, Failure, Follows, Question, call, framed
from pipeline.views import Sampled

WINDOW = 50
"""Calls over which the share of failures is taken."""
MIN_CALLS = 10
"""No verdict on the share of failures before so many calls."""
WARM_UP_S = 120.0
"""How long a worker may take to build the plug-in: user code may import a great deal."""


class RewardFailed(Exception):
    """One trajectory has no reward; `traceback` is the user code's, where there is one."""

    def __init__(self, why: str, traceback: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.traceback = traceback


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What the pool does now."""

    queued: int
    running: int
    called: int  # of the last 50
    failed: int  # of those


class Scored(msgspec.Struct, frozen=True):
    """A reward, and when its worker began and ended, seconds of the monotonic clock."""

    value: float
    parts: dict[str, float]
    times: tuple[float, float]


class WorkerPool:
    """Asks one plug-in of a seam; used from one event loop, as an async context manager."""

    seam: ClassVar[str]
    defaults: ClassVar[plugins.WorkerOptions]
    """Guards of a plug-in without options of its own."""

    def __init__(self, plugin: Plugin) -> None:
        """Nothing starts before `start`. Raises PluginError if the plug-in is not found."""
        self._plugin = plugin
        self._options = self._guards(plugin)
        self._directory = tempfile.TemporaryDirectory(prefix=f"darts-{self.seam}s-")
        self._turn = asyncio.Semaphore(self._options.workers)
        self._idle: list[WorkerProcess] = []
        self._endings: set[asyncio.Task[None]] = set()
        self._calls: dict[int, asyncio.Task[Done | Follows]] = {}
        self._in_flight = 0
        self._ends: deque[bool] = deque(maxlen=WINDOW)  # True: failed
        self._last: RewardFailed | None = None

    def _guards(self, plugin: Plugin) -> plugins.WorkerOptions:
        cls = plugins.find(self.seam, plugin.name)
        options = msgspec.convert(plugin.options, plugins.options_type(cls))
        return options if isinstance(options, plugins.WorkerOptions) else self.defaults

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the workers, which build the plug-in. Raises RewardFailed if they cannot."""
        found = await asyncio.gather(
            *(self._start_one() for _ in range(self._options.workers)), return_exceptions=True
        )
        for worker in found:
            if isinstance(worker, WorkerProcess):
                self._idle.append(worker)
        for worker in found:
            if isinstance(worker, BaseException):
                raise worker

    async def ask(self, question: Question, trajectory: int | None = None) -> Done | Follows:
        """One answer. Raises RewardFailed; CancelledError after `cancel`."""
        task = asyncio.ensure_future(self._call(question))
        if trajectory is not None:
            self._calls[trajectory] = task
        try:
            found = await task
        except RewardFailed as error:
            self._ends.append(True)
            self._last = error
            raise
        finally:
            task.cancel()  # when it was this call that was cancelled
            if trajectory is not None:
                self._calls.pop(trajectory, None)
        self._ends.append(False)
        return found

    def cancel(self, trajectory: int) -> None:
        """Its answer is not needed any more; a running call is killed. Unknown ones are ignored."""
        task = self._calls.get(trajectory)
        if task is not None:
            task.cancel()

    @property
    def workers(self) -> int:
        """Processes that answer."""
        return self._options.workers

    def statistics(self) -> Figures:
        running = min(self._in_flight, self._options.workers)
        return Figures(
            queued=self._in_flight - running,
            running=running,
            called=len(self._ends),
            failed=sum(self._ends),
        )

    @property
    def verdict(self) -> str | None:
        """Why the run has to stop: too large a share of the last calls failed. None: go on."""
        called, failed = len(self._ends), sum(self._ends)
        if called < MIN_CALLS or failed <= self._options.fail_share * called or not self._last:
            return None
        trace = f"\n{self._last.traceback}" if self._last.traceback else ""
        return (
            f"{self.seam} {self._plugin.name!r} failed in {failed} of the last {called} calls, "
            f"over {self.seam}.{self._plugin.name}.fail_share {self._options.fail_share:g}; "
            f"last: {self._last.why}{trace}"
        )

    async def close(self) -> None:
        """Kill every worker and what it started; repeatable."""
        calls = list(self._calls.values())
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        while self._idle:
            self._discard(self._idle.pop())
        await asyncio.gather(*self._endings)
        self._directory.cleanup()

    # --- one call -------------------------------------------------------------------------

    async def _call(self, question: Question) -> Done | Follows:
        frame = framed(question)
        self._in_flight += 1
        try:
            try:
                return await self._ask(frame)
            except Died:
                return await self._ask(frame)  # once more, then it is its own fault
        except Died as error:
            raise RewardFailed(f"its worker died twice: {error}") from error
        finally:
            self._in_flight -= 1

    async def _ask(self, frame: bytes) -> Done | Follows:
        async with self._turn:
            worker = self._idle.pop() if self._idle else await self._start_one()
            asked, limit_s = time.monotonic(), self._options.limit_s
            try:
                async with asyncio.timeout(limit_s):
                    found = await worker.ask(frame)
            except TimeoutError as error:
                self._discard(worker)
                raise RewardFailed(f"took longer than limit_s {limit_s:g}") from error
            except BaseException:  # it has died, or nobody waits for it any more
                self._discard(worker)
                raise
            self._idle.append(worker)
        if isinstance(found, Failure):
            raise RewardFailed(found.why, found.traceback)
        if not isinstance(found, Done | Follows):
            raise RewardFailed("its worker answered that it is ready")
        # It is believed what it measured as far as that lies within the call.
        ended = min(max(found.ended, asked), time.monotonic())
        begun = min(max(found.begun, asked), ended)
        return msgspec.structs.replace(found, begun=begun, ended=ended)

    async def _start_one(self) -> WorkerProcess:
        """A worker that has built the plug-in. Raises RewardFailed."""
        who, options = f"{self.seam} {self._plugin.name!r}", self._options
        limits = Limits(
            memory_gib=options.memory_gib,
            cpu_s=options.cpu_s,
            file_mib=options.file_mib,
            open_files=options.open_files,
        )
        try:
            async with asyncio.timeout(WARM_UP_S):
                worker, answer = await reward_process.start(
                    self.seam, self._plugin, limits, self._directory.name, options.env
                )
        except TimeoutError as error:
            raise RewardFailed(f"{who} was not built within {WARM_UP_S:g} s") from error
        except Died as error:
            raise RewardFailed(f"{who}: its worker died while building it ({error})") from error
        if isinstance(answer, Failure):
            self._discard(worker)
            raise RewardFailed(f"{who}: {answer.why}", answer.traceback)
        return worker

    def _discard(self, worker: WorkerProcess) -> None:
        worker.kill()
        ending = asyncio.ensure_future(worker.close())
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


class RewardPool(WorkerPool):
    """Scores samples with one reward."""

    seam = "reward"
    defaults = plugins.RewardOptions()

    async def score(self, sample: Sampled, trajectory: int | None = None) -> Scored:
        """The reward of one sample. Raises RewardFailed; CancelledError after `cancel`."""
        found = await self.ask(call(sample), trajectory)
        if not isinstance(found, Done):
            raise RewardFailed("its worker answered what is no score")
        return Scored(found.value, found.parts, (found.begun, found.ended))
