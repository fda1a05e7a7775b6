"""Calls a plug-in (a reward or an environment) in worker processes of its own.

User code never runs in the stage: code that raises, hangs, crashes or answers nonsense
causes a `RewardFailed` for that trajectory and nothing else. A call past its limit is
killed with every process that it started. A crash is tried once more, since another
process may have used up the memory; an exception or a timeout is not. If a batch fails
as a whole, each of its samples is tried alone. No worker outlives the process that made
the pool.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import msgspec

from pipeline.config.schema import Plugin, WorkersConfig
from pipeline.plugins import interfaces, registry
from pipeline.plugins.views import Sampled, Turn
from pipeline.system import temp_dirs
from pipeline.workers import process
from pipeline.workers.jobs import Followed, NoOpinion, Result, RewardFailed, Scored, WorkerJob
from pipeline.workers.process import Died, WorkerProcess
from pipeline.workers.protocol import (
    Abstained,
    Answer,
    Checked,
    Done,
    Failure,
    Follows,
    Scores,
    frame_message,
    make_call,
    make_check,
)
from pipeline.workers.resource_limits import ResourceLimits

WINDOW = 50
"""Number of last calls over which the share of failures is computed."""
MIN_CALLS = 10
"""Fewest calls before the share of failures can stop the run."""
SPARE_S = 0.2
"""Seconds that a cancelled call may still run: restarting the worker takes longer."""
WARM_UP_S = 120.0
"""Seconds that a worker may take to build the plug-in: user code may import a lot."""


class PoolStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of a pool's jobs now, and of its last calls."""

    queued: int
    running: int
    called: int  # of the last 50
    failed: int  # of those


class WorkerPool:
    """Calls one plug-in; used from one event loop, as an async context manager.

    Args:
        section: the settings of its workers.
        most: most workers, whatever the section says; 0: as the section says.
    """

    kind: ClassVar[str]

    def __init__(self, plugin: Plugin, section: WorkersConfig, most: int = 0) -> None:
        """Starts no worker yet. Raises PluginError if the plug-in is not found."""
        self._plugin, self._section = plugin, section
        self.workers = min(section.count, most or section.count)
        """Number of worker processes."""
        options = self._plugin_options()
        self._batch = options.batch if isinstance(options, interfaces.RewardOptions) else 1
        name = temp_dirs.name_of(os.getpid(), f"{self.kind}s-")
        self._directory = tempfile.TemporaryDirectory(prefix=name)
        temp_dirs.sign_owner(Path(self._directory.name), os.getpid())
        self._idle: list[WorkerProcess] = []
        self._endings: set[asyncio.Task[None]] = set()
        self._jobs: dict[int, WorkerJob] = {}  # by trajectory
        self._waiting: deque[WorkerJob] = deque()
        self._calls: dict[asyncio.Task[None], list[WorkerJob]] = {}  # one per busy worker
        self._ends: deque[bool] = deque(maxlen=WINDOW)  # True: failed
        self._last: RewardFailed | None = None

    def _plugin_options(self) -> interfaces.Options:
        found = registry.find_plugin(self.kind, self._plugin.name)
        return msgspec.convert(self._plugin.options, registry.options_type(found))

    async def __aenter__(self) -> Self:
        try:
            await self.start_workers()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start_workers(self) -> None:
        """Start the workers, which build the plug-in. Raises RewardFailed if they cannot."""
        found = await asyncio.gather(
            *(self._start_one() for _ in range(self.workers)), return_exceptions=True
        )
        for worker in found:
            if isinstance(worker, WorkerProcess):
                self._idle.append(worker)
        for worker in found:
            if isinstance(worker, BaseException):
                raise worker

    async def ask_plugin(
        self, sample: Sampled | Turn, trajectory: int | None = None
    ) -> Scored | Followed:
        """Call the plug-in with one sample. Raises RewardFailed; NoOpinion; CancelledError
        after `cancel_call`."""
        [found] = await self._answer(
            WorkerJob([sample], [] if trajectory is None else [trajectory])
        )
        if isinstance(found, Exception):
            raise found
        return found

    async def _answer(self, job: WorkerJob) -> list[Result]:
        """Run a job, and count how it went. Raises RewardFailed if the call as a whole failed."""
        asked = dict.fromkeys(job.wanted, job)
        self._jobs |= asked
        self._waiting.append(job)
        self._pump()
        try:
            found = await job.answer
        except RewardFailed as error:
            self._count(error)
            raise
        finally:
            for trajectory in asked:
                self._jobs.pop(trajectory, None)
            if job.answer.cancelled():
                self._abandon(job)
        self._count(next((error for error in found if isinstance(error, RewardFailed)), None))
        return found

    def _count(self, failure: RewardFailed | None) -> None:
        self._ends.append(failure is not None)
        self._last = failure or self._last

    def cancel_call(self, trajectory: int) -> None:
        """Cancel a call; a running one is killed unless it ends within `SPARE_S` or has other
        jobs. Unknown trajectories are ignored."""
        job = self._jobs.get(trajectory)
        if job is not None:
            job.wanted.discard(trajectory)
            if not job.wanted:
                job.answer.cancel()

    def statistics(self) -> PoolStatistics:
        jobs = [job for call in self._calls.values() for job in call]
        return PoolStatistics(
            queued=sum(not job.answer.done() for job in self._waiting),
            running=sum(not job.answer.done() for job in jobs),
            called=len(self._ends),
            failed=sum(self._ends),
        )

    @property
    def stop_reason(self) -> str | None:
        """The reason to stop the run: too many of the last calls failed. None: there is none."""
        called, failed = len(self._ends), sum(self._ends)
        if called < MIN_CALLS or failed <= self._section.fail_share * called or not self._last:
            return None
        trace = f"\n{self._last.traceback}" if self._last.traceback else ""
        return (
            f"{self._who} failed in {failed} of the last {called} calls, over "
            f"workers.fail_share {self._section.fail_share:g}; "
            f"last: {self._last.why}{trace}"
        )

    async def close(self) -> None:
        """Kill every worker and every process that it started; may be called again."""
        calls = list(self._calls)
        for job in (*self._waiting, *(job for jobs in self._calls.values() for job in jobs)):
            job.answer.cancel()
        self._waiting.clear()
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        while self._idle:
            self._discard(self._idle.pop())
        await asyncio.gather(*self._endings)
        self._directory.cleanup()

    # --- calls ----------------------------------------------------------------------------

    def _pump(self) -> None:
        """Give waiting jobs to idle workers."""
        while self._waiting and len(self._calls) < self.workers:
            task = asyncio.ensure_future(self._carry_out(jobs := self._next()))
            self._calls[task] = jobs
            task.add_done_callback(self._ended)

    def _next(self) -> list[WorkerJob]:
        """Take the next batch: the oldest job, and others that may join it."""
        jobs = [self._waiting.popleft()]
        while (
            self._waiting
            and len(jobs) < self._batch
            and not jobs[0].alone
            and not self._waiting[0].alone
        ):
            jobs.append(self._waiting.popleft())
        return jobs

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._calls[task]
        self._pump()

    def _abandon(self, job: WorkerJob) -> None:
        """Drop a cancelled job; kill its call if all jobs of the call are done."""
        if job in self._waiting:
            self._waiting.remove(job)
        for task, jobs in self._calls.items():
            if job in jobs and all(other.answer.done() for other in jobs):
                asyncio.get_running_loop().call_later(SPARE_S, task.cancel)

    async def _carry_out(self, jobs: list[WorkerJob]) -> None:
        """Run one call; every job gets its result, or waits again for a call of its own."""
        try:
            scores = await self._ask(jobs)
            found = (self._result(of, (scores.begun, scores.ended)) for of in scores.found)
            for job in jobs:
                job.set_results(list(itertools.islice(found, len(job.samples))))
        except Exception as error:  # whatever it is, every job must get an answer
            if len(jobs) > 1:
                for job in jobs:
                    job.alone = True
                self._waiting.extendleft(j for j in reversed(jobs) if not j.answer.done())
                return
            [job] = jobs
            if isinstance(error, Died) and not (job.died or job.answer.done()):
                job.died = True  # try once more; a second death is its own fault
                self._waiting.appendleft(job)
            elif isinstance(error, Died):
                job.set_failure(_chained(RewardFailed(f"its worker died twice: {error}"), error))
            elif isinstance(error, TimeoutError):
                why = f"took longer than workers.limit_s {self._section.limit_s:g}"
                job.set_failure(_chained(RewardFailed(why), error))
            elif isinstance(error, RewardFailed):
                job.set_failure(error)
            else:  # a column that JSON cannot hold, no descriptor or memory for a worker
                why = f"cannot be sent to a worker: {type(error).__name__}: {error}"
                job.set_failure(_chained(RewardFailed(why), error))

    def _result(
        self, found: Done | Abstained | Follows | Failure, times: tuple[float, float]
    ) -> Result:
        if isinstance(found, Done):
            return Scored(found.value, found.parts, times)
        if isinstance(found, Follows):
            return Followed(found, times)
        if isinstance(found, Failure):
            return RewardFailed(found.why, found.traceback)
        return NoOpinion(f"{self._who} has no opinion on it")

    async def _ask(self, jobs: list[WorkerJob]) -> Scores:
        """Send jobs to a worker. Raises Died, TimeoutError, or RewardFailed if none can start."""
        samples = [sample for job in jobs for sample in job.samples]
        frame = frame_message(make_call(samples, whole=jobs[0].whole))
        worker = self._idle.pop() if self._idle else await self._start_one()
        asked = time.monotonic()
        try:
            async with asyncio.timeout(self._section.limit_s):
                found = await worker.ask_worker(frame)
            if not isinstance(found, Scores) or len(found.found) != len(samples):
                raise self._nonsense(found)
        except BaseException:  # it took too long, has died, or was cancelled
            self._discard(worker)
            raise
        self._idle.append(worker)
        # Its times are trusted only within those of the call.
        ended = min(max(found.ended, asked), time.monotonic())
        begun = min(max(found.begun, asked), ended)
        return msgspec.structs.replace(found, begun=begun, ended=ended)

    def _nonsense(self, answer: Answer) -> RewardFailed:
        """Make the error for an answer of the wrong kind."""
        if isinstance(answer, Failure):
            return RewardFailed(answer.why, answer.traceback)
        return RewardFailed(f"its worker sent an unexpected {type(answer).__name__}")

    async def _start_one(self) -> WorkerProcess:
        """Start a worker and let it build the plug-in; once more if it dies, as of a kernel that is
        short of memory. Raises RewardFailed."""
        try:
            try:
                return await self._build()
            except Died:
                return await self._build()
        except Died as error:  # its own fault
            raise RewardFailed(
                f"{self._who}: its worker died twice while building it ({error})"
            ) from error

    async def _build(self) -> WorkerProcess:
        """Start a worker and let it build the plug-in. Raises Died, RewardFailed."""
        section = self._section
        limits = ResourceLimits(
            memory_gib=section.memory_gib,
            cpu_s=section.cpu_s,
            file_mib=section.file_mib,
            open_files=section.open_files,
        )
        try:
            async with asyncio.timeout(WARM_UP_S):
                worker, answer = await process.start_worker(
                    self.kind,
                    self._plugin,
                    limits,
                    self._directory.name,
                    section.env,
                    section.processes,
                )
        except TimeoutError as error:
            raise RewardFailed(f"{self._who} was not built within {WARM_UP_S:g} s") from error
        if isinstance(answer, Failure):
            self._discard(worker)
            raise RewardFailed(f"{self._who}: {answer.why}", answer.traceback)
        return worker

    @property
    def _who(self) -> str:
        return f"{self.kind} {self._plugin.name!r}"

    def _discard(self, worker: WorkerProcess) -> None:
        worker.kill()
        ending = asyncio.ensure_future(worker.close())
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


class RewardPool(WorkerPool):
    """Scores samples with one reward."""

    kind = "reward"

    async def score_sample(self, sample: Sampled, trajectory: int | None = None) -> Scored:
        """Score one sample. Raises RewardFailed; NoOpinion; CancelledError after
        `cancel_call`."""
        found = await self.ask_plugin(sample, trajectory)
        if not isinstance(found, Scored):
            raise RewardFailed("its worker did not answer with a score")
        return found

    async def score_group(
        self, samples: Sequence[Sampled], trajectories: Sequence[int]
    ) -> list[Result]:
        """Score a group by the reward's `score_group`: a result for each. Raises RewardFailed;
        CancelledError once `cancel_call` has named all of them."""
        return await self._answer(WorkerJob(samples, trajectories, whole=True))

    async def check_answers(self, samples: Sequence[Sampled]) -> list[str]:
        """Have the plug-in check the answers of samples without responses: returns a complaint
        for each, '' for none; an empty list if it checks none. Raises RewardFailed.

        For use between `start_workers` and the first `score_sample`.
        """
        try:
            frame = frame_message(make_check(samples))
            async with asyncio.timeout(WARM_UP_S):
                try:
                    answer = await self._idle[0].ask_worker(frame)
                except Died:  # once more, as when it is built
                    dead, self._idle[0] = self._idle[0], await self._start_one()
                    self._discard(dead)
                    answer = await self._idle[0].ask_worker(frame)
        except (TimeoutError, Died, TypeError) as error:  # also a column that JSON cannot hold
            self._discard(self._idle.pop(0))
            why = str(error) or f"took longer than {WARM_UP_S:g} s"
            raise RewardFailed(f"{self._who}, checking answers: {why}") from error
        if isinstance(answer, Checked):
            return answer.complaints
        raise self._nonsense(answer)


def _chained(error: RewardFailed, cause: Exception) -> RewardFailed:
    error.__cause__ = cause
    return error
