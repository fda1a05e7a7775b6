"""One worker of a pool, seen from the stage: started, asked, listened to, and never left behind.

Each is a fresh interpreter with a session of its own, an environment without secrets, no
descriptor but its channel and its output, and an empty directory to work in.
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
"""Of what one call prints so much is logged, and the rest is read and forgotten."""
_END_S = 2.0  # from the end of its channel to that of its process
_COUNT_S = 0.1  # between two looks at how many processes a call has started


class Died(Exception):
    """The worker has ended under a call, or answered nonsense; the text says how."""


class WorkerProcess:
    """Made by `start`; then `ask` one thing at a time; then `close`.

    Args:
        most: processes that it and what it has started may be; 0: any.
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
        """Its answer. Raises Died."""
        self._printed = 0
        counting = asyncio.ensure_future(self._count())
        try:
            self._writer.write(frame)
            await self._writer.drain()
            length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "little")
            if length > MAX_ANSWER_BYTES:
                raise Died(f"it answered {length} bytes, at most {MAX_ANSWER_BYTES} are read")
            return decode_answer(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Died(await self._how()) from error
        except msgspec.DecodeError as error:
            raise Died(f"it answered what is no answer: {error}") from error
        finally:
            counting.cancel()

    async def _count(self) -> None:
        """Kill it when there are too many of it. The system's own limit is for all that the user
        runs, and none for root."""
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
            await asyncio.to_thread(kill_marked, self._mark)  # they hold its channel open

    async def _how(self) -> str:
        """How the process ended."""
        if self._too_many:
            return f"killed, for it had started more than {self._most} processes"
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = await asyncio.to_thread(self._process.wait, _END_S)
            return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return "it closed its channel"

    async def _listen(self, output: asyncio.StreamReader) -> None:
        """Log what it prints, up to a limit for each call."""
        with contextlib.suppress(OSError):
            while printed := await output.read(OUTPUT_BYTES):
                room = OUTPUT_BYTES - self._printed
                self._printed += len(printed)
                if room > 0:
                    text = printable(printed[:room].decode(errors="replace"))
                    more = " (and more, which is not logged)" if len(printed) > room else ""
                    who = f"{self._kind} worker {self._process.pid}"
                    log.info("%s: %s%s", who, text.rstrip(), more)

    def kill(self) -> None:
        """At once, with its process group; `close` sees to the rest."""
        if self._process.returncode is None:  # else its number may be another's by now
            os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Kill it with all that it has started, and wait for its end."""
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
    """The process, its channel and its output."""
    environment = without_secrets(os.environ, keep) | {
        MARK: mark,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(place or os.getcwd() for place in sys.path)),
        "TMPDIR": work,
        "MALLOC_ARENA_MAX": "4",  # each takes 64 MiB of the address space, which is limited
    }
    (ours, theirs), (output, their_output) = socket.socketpair(), socket.socketpair()
    with theirs, their_output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "pipeline.workers", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=their_output.fileno(),
            stderr=their_output.fileno(),
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,  # out of the terminal's group: Ctrl-C is not for it
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
    """A worker, and what it says of building the plug-in. Raises Died.

    Args:
        directory: of the pool; the worker has one of its own below it.
        keep: variables of the environment that it is given although they look like secrets.
        most: processes that it and what it has started may be; 0: any.
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
