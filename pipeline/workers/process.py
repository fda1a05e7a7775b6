"""Starts, calls and ends one worker process of a pool.

Each is a new interpreter with a session of its own, an environment without secrets, no
descriptors but its channel and its output, and an empty directory to work in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection

import msgspec

from pipeline.config.schema import Plugin
from pipeline.system.private_dirs import UMASK
from pipeline.system.python_path import SAFE
from pipeline.system.terminal_text import printable
from pipeline.workers.protocol import (
    LENGTH_BYTES,
    MAX_ANSWER_BYTES,
    Answer,
    Setup,
    decode_answer,
    frame_message,
)
from pipeline.workers.resource_limits import (
    MARK,
    ResourceLimits,
    count_tasks,
    kill_marked,
    marked_processes,
    without_secrets,
)

log = logging.getLogger("stage")
OUTPUT_BYTES = 64 << 10
"""Bytes of a call's output that are logged; the rest is read and thrown away."""
_END_S = 2.0  # wait for the end of the process after that of its channel
_COUNT_S = 0.1  # between two counts of the processes that a call has started


class Died(Exception):
    """The worker ended during a call, or answered nonsense; the text says how."""


class WorkerProcess:
    """Made by `start_worker`; then call `ask_worker`, one at a time; then `close`.

    Args:
        most: most processes, the worker and all that it starts; 0: no limit.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        mark: str,
        most: int,
        channel: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        output: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        kind: str,
    ) -> None:
        self._process, self._mark, self._kind = process, mark, kind
        self._most, self._too_many = most, False
        self._reader, self._writer = channel
        self._printed = 0
        self._writers = (channel[1], output[1])
        self._listening = asyncio.ensure_future(self._listen(output[0]))

    async def ask_worker(self, frame: bytes) -> Answer:
        """Send a frame and return the answer. Raises Died."""
        self._printed = 0
        counting = asyncio.ensure_future(self._count())
        try:
            self._writer.write(frame)
            await self._writer.drain()
            length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "little")
            if length > MAX_ANSWER_BYTES:
                raise Died(f"it answered {length} bytes, at most {MAX_ANSWER_BYTES} are allowed")
            return decode_answer(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Died(await self._how()) from error
        except msgspec.DecodeError as error:
            raise Died(f"its answer does not decode: {error}") from error
        finally:
            counting.cancel()

    async def _count(self) -> None:
        """Kill the worker when it has started too many processes. The system's own limit covers
        all processes of the user, and does not apply to root."""
        before = count_tasks()
        while self._most and not self._too_many:
            await asyncio.sleep(_COUNT_S)
            if (now := count_tasks()) - before >= self._most:
                before = now
                self._too_many = (
                    len(await asyncio.to_thread(marked_processes, self._mark)) > self._most
                )
        if self._too_many:
            self.kill()
            await asyncio.to_thread(kill_marked, self._mark)  # else they keep its channel open

    async def _how(self) -> str:
        """Describe how the process ended."""
        if self._too_many:
            return f"killed, because it had started more than {self._most} processes"
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = await asyncio.to_thread(self._process.wait, _END_S)
            return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return "it closed its channel"

    async def _listen(self, output: asyncio.StreamReader) -> None:
        """Log the worker's output, up to a limit per call."""
        with contextlib.suppress(OSError):
            while printed := await output.read(OUTPUT_BYTES):
                room = OUTPUT_BYTES - self._printed
                self._printed += len(printed)
                if room > 0:
                    text = printable(printed[:room].decode(errors="replace"))
                    more = " (the rest is not logged)" if len(printed) > room else ""
                    who = f"{self._kind} worker {self._process.pid}"
                    log.info("%s: %s%s", who, text.rstrip(), more)

    def kill(self) -> None:
        """Kill its process group at once; `close` ends the rest."""
        if self._process.returncode is None:  # else its pid may belong to another process
            os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Kill it with every process that it started, and wait for its end."""
        self.kill()
        await asyncio.to_thread(self._process.wait)
        await asyncio.to_thread(kill_marked, self._mark)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await self._listening


def _spawn(
    work: str, keep: Collection[str], mark: str
) -> tuple[subprocess.Popen[bytes], socket.socket, socket.socket]:
    """Start the process; returns it, its channel and its output."""
    environment = without_secrets(os.environ, keep) | {
        MARK: mark,
        "PYTHONIOENCODING": "utf-8:backslashreplace",  # no text that it prints is an error
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(place or os.getcwd() for place in sys.path)),
        "TMPDIR": work,
        "MALLOC_ARENA_MAX": "4",  # each takes 64 MiB of the limited address space
    }
    (ours, theirs), (output, their_output) = socket.socketpair(), socket.socketpair()
    with theirs, their_output:
        process = subprocess.Popen(
            [sys.executable, SAFE, "-u", "-m", "pipeline.workers", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=their_output.fileno(),
            stderr=their_output.fileno(),
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,  # not in the terminal's group: Ctrl-C must not reach it
            umask=UMASK,
        )
    return process, ours, output


async def start_worker(
    kind: str,
    plugin: Plugin,
    limits: ResourceLimits,
    directory: str,
    keep: Collection[str],
    most: int,
) -> tuple[WorkerProcess, Answer]:
    """Start a worker; returns it and its answer to building the plug-in. Raises Died.

    Args:
        directory: that of the pool; the worker gets one of its own in it.
        keep: environment variables to pass on although they look like secrets.
        most: most processes, the worker and all that it starts; 0: no limit.
    """
    work = tempfile.mkdtemp(dir=directory)
    mark = secrets.token_hex(8)
    process, channel, output = _spawn(work, keep, mark)
    worker = WorkerProcess(
        process,
        mark,
        most,
        await asyncio.open_connection(sock=channel),
        await asyncio.open_connection(sock=output),
        kind,
    )
    try:
        return worker, await worker.ask_worker(
            frame_message(Setup(plugin, limits, work, os.getpid(), kind))
        )
    except BaseException:
        worker.kill()
        await worker.close()
        raise
