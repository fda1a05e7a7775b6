"""Ended trajectories -> scores, by a reward plug-in in worker processes of its own.

User code never runs in the stage: what raises, hangs, crashes or answers nonsense
is a `RewardFailed` for that trajectory and nothing else. A call past its limit is
killed with whatever it had started. A crash is tried once more, since it may have
been the neighbour's memory; an exception or a timeout is not. No worker outlives
the process that made the pool.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import inspect
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import msgspec
import pebble

from pipeline import plugins
from pipeline.config import Plugin
from pipeline.verbs import Score
from pipeline.views import Sampled

WINDOW = 50
"""Calls over which the share of failures is taken."""
MIN_CALLS = 10
"""No verdict on the share of failures before so many calls."""
WARM_UP_S = 120.0
"""How long a worker may take to build the plug-in: user code may import a great deal."""
_PR_SET_PDEATHSIG = 1


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


class RewardPool:
    """Scores samples with one plug-in; used from one event loop, as an async context manager."""

    def __init__(self, plugin: Plugin) -> None:
        """Nothing starts before `start`. Raises PluginError if the plug-in is not found."""
        self._plugin = plugin
        self._options = self._guards(plugin)
        self._directory = tempfile.TemporaryDirectory(prefix="darts-rewards-")
        self._pool: pebble.ProcessPool | None = None
        self._calls: dict[int, asyncio.Task[Scored]] = {}
        self._in_flight = 0
        self._ends: deque[bool] = deque(maxlen=WINDOW)  # True: failed
        self._last: RewardFailed | None = None

    @staticmethod
    def _guards(plugin: Plugin) -> plugins.RewardOptions:
        cls = plugins.find("reward", plugin.name)
        options = msgspec.convert(plugin.options, plugins.options_type(cls))
        if isinstance(options, plugins.RewardOptions):
            return options
        return plugins.RewardOptions()  # a plug-in without options of its own is guarded too

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.close)

    async def start(self) -> None:
        """Start the workers and have one build the plug-in. Raises RewardFailed if it cannot."""
        future = self._schedule(_warm_up, (), WARM_UP_S)
        try:
            answer = await asyncio.wait_for(asyncio.wrap_future(future), 2 * WARM_UP_S)
        except (TimeoutError, concurrent.futures.TimeoutError) as error:
            raise RewardFailed(
                f"reward {self._plugin.name!r} was not built within {WARM_UP_S:g} s"
            ) from error
        except (pebble.ProcessExpired, RuntimeError) as error:
            raise RewardFailed(
                f"reward {self._plugin.name!r}: its worker died while building it ({error})"
            ) from error
        if answer[0] == "error":
            raise RewardFailed(f"reward {self._plugin.name!r}: {answer[1]}", answer[2])

    async def score(self, sample: Sampled, trajectory: int | None = None) -> Scored:
        """The reward of one sample. Raises RewardFailed; CancelledError after `cancel`."""
        task = asyncio.ensure_future(self._call(sample))
        if trajectory is not None:
            self._calls[trajectory] = task
        try:
            score = await task
        except RewardFailed as error:
            self._ends.append(True)
            self._last = error
            raise
        finally:
            task.cancel()  # when it was this call that was cancelled
            if trajectory is not None:
                self._calls.pop(trajectory, None)
        self._ends.append(False)
        return score

    def cancel(self, trajectory: int) -> None:
        """Its score is not needed any more; a running call is killed. Unknown ones are ignored."""
        task = self._calls.get(trajectory)
        if task is not None:
            task.cancel()

    @property
    def workers(self) -> int:
        """Processes that score."""
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
            f"reward {self._plugin.name!r} failed in {failed} of the last {called} calls, over "
            f"reward.{self._plugin.name}.fail_share {self._options.fail_share:g}; "
            f"last: {self._last.why}{trace}"
        )

    def close(self) -> None:
        """Kill every worker and what it started; repeatable."""
        for task in list(self._calls.values()):
            if not task.get_loop().is_closed():
                task.get_loop().call_soon_threadsafe(task.cancel)
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.stop()
            pool.join()
            self._sweep(all_of_them=True)
        self._directory.cleanup()

    # --- one call -------------------------------------------------------------------------

    async def _call(self, sample: Sampled) -> Scored:
        self._in_flight += 1
        try:
            try:
                answer = await self._ask(sample)
            except _CrashedError:
                answer = await self._ask(sample)  # once more, then it is its own fault
        except _CrashedError as error:
            raise RewardFailed(f"its worker died twice: {error}") from error
        finally:
            self._in_flight -= 1
        if answer[0] == "error":
            raise RewardFailed(answer[1], answer[2])
        return Scored(*answer[1:])

    async def _ask(self, sample: Sampled) -> tuple[Any, ...]:
        try:
            future = self._schedule(_score, (sample,), self._options.limit_s)
            return await asyncio.wrap_future(future)
        except (TimeoutError, concurrent.futures.TimeoutError) as error:
            self._sweep()
            raise RewardFailed(f"took longer than limit_s {self._options.limit_s:g}") from error
        except asyncio.CancelledError:
            # pebble kills the worker a moment later; its children are swept then
            asyncio.get_running_loop().call_later(1.0, self._sweep)
            raise
        except pebble.ProcessExpired as error:
            self._sweep()
            raise _CrashedError(_exit_text(error)) from error
        except RuntimeError as error:  # the pool itself broke: the next call makes a new one
            broken, self._pool = self._pool, None
            if broken is not None:
                broken.stop()
            raise _CrashedError(str(error) or "the pool broke") from error

    def _schedule(
        self, function: Any, arguments: tuple[Any, ...], limit_s: float
    ) -> concurrent.futures.Future[Any]:
        if self._pool is None or not self._pool.active:
            self._pool = pebble.ProcessPool(
                max_workers=self._options.workers,
                context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(self._plugin, self._directory.name, os.getpid()),
            )
        return self._pool.schedule(function, args=arguments, timeout=limit_s)

    def _sweep(self, all_of_them: bool = False) -> None:
        """Kill what dead workers have left: each leads a process group and has left its id."""
        for note in Path(self._directory.name).glob("*"):
            pid = int(note.name)
            if not all_of_them and _alive(pid):
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            note.unlink(missing_ok=True)


class _CrashedError(Exception):
    """A worker died under a call."""


def _exit_text(error: pebble.ProcessExpired) -> str:
    code = getattr(error, "exitcode", None)
    if isinstance(code, int) and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _alive(pid: int) -> bool:
    """Whether a worker still runs; one that waits to be reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


# --- inside a worker --------------------------------------------------------------------------

_reward: Any = None
_failure: tuple[str, str, str] | None = None


def _begin(plugin: Plugin, directory: str, parent: int) -> None:
    """First in every worker: die with the parent, lead a group, build the plug-in.

    Building it here keeps its imports out of the first call's limit. What it
    raises is kept as data: an exception here, or one that does not unpickle,
    would break the pool.
    """
    global _reward, _failure
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it died before the line above
    os.setpgid(0, 0)  # out of the terminal's group too: Ctrl-C is the parent's to handle
    Path(directory, str(os.getpid())).touch()
    try:
        cls = plugins.find("reward", plugin.name)
        _reward = cls(msgspec.convert(plugin.options, plugins.options_type(cls)))
    except BaseException as error:
        _failure = _as_data(error)


def _warm_up() -> tuple[Any, ...]:
    return _failure or ("ok",)


def _score(sample: Sampled) -> tuple[Any, ...]:
    """("ok", value, parts, (begun, ended)) or ("error", why, traceback)."""
    if _failure:
        return _failure
    begun = time.monotonic()  # this machine's clock, as the stage's
    try:
        result = _reward.score(sample)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        value, parts = checked(result)
    except Exception as error:
        return _as_data(error)
    return "ok", value, parts, (begun, time.monotonic())


async def _awaited(result: Any) -> Any:
    return await result


def _as_data(error: BaseException) -> tuple[str, str, str]:
    why = f"{type(error).__name__}: {error}"
    return "error", why, "".join(traceback.format_exception(error))


def checked(result: object) -> tuple[float, dict[str, float]]:
    """A reward's answer as a finite number with parts. Raises ValueError or TypeError.

    A dict is verl's: "score" is the reward, its other numbers are parts.
    """
    parts: Mapping[Any, Any] = {}
    if isinstance(result, Score):
        result, parts = result.value, result.parts
    elif isinstance(result, dict):
        given = cast(dict[Any, Any], result)
        if "score" not in given:
            raise ValueError(f"returned a dict without 'score': {', '.join(map(str, given))}")
        result, parts = given["score"], {k: v for k, v in given.items() if k != "score"}
    value = _number(result)
    if value is None:
        raise TypeError(f"returned {type(result).__name__} {result!r:.80}, expected a number")
    if not math.isfinite(value):
        raise ValueError(f"returned {value}, expected a finite number")
    numbers = {str(key): _number(part) for key, part in parts.items()}
    return value, {key: number for key, number in numbers.items() if number is not None}


def _number(value: object) -> float | None:
    """Numbers, booleans and what offers __float__ (numpy, one-element tensors); text does not."""
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        return None
    return float(cast(float, value))
