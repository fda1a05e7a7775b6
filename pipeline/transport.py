"""ZeroMQ sockets: the only file that imports zmq.

`Hub` is the stage's side (asyncio), `Link` a peer's side (a thread of its own,
so that heartbeats go on while the peer computes). Control messages travel
ROUTER <-> DEALER with a sequence number in each direction; tokens travel
PUSH -> PULL. Sockets are `ipc://` in a directory that only its owner may
enter; whoever binds holds a lock on the run, for a second bind on the same
ipc path silently takes the traffic.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import zmq
import zmq.asyncio

from pipeline.codec import MAX_DATA_BYTES, decode_from_peer, decode_to_peer, encode
from pipeline.messages import (
    Alive,
    FromPeer,
    Heartbeat,
    Join,
    Refused,
    Shutdown,
    TokenBatch,
    ToPeer,
    Welcome,
    WireError,
)
from pipeline.private import make_private

ORPHAN_S = 120.0
"""A peer that has not heard of its stage for so long shuts itself down: for parts that no launcher
watches. A launcher's children end with it, whatever their stage does."""
_SEQUENCE = struct.Struct("<Q")
_IPC_LIMIT = 107  # bytes of a Unix socket path


class TransportError(Exception):
    """The sockets cannot be used as asked; the message says why and what to do."""


class Unreachable(TransportError):
    """The peer is gone (or has not joined)."""


def addresses(directory: Path) -> tuple[str, str]:
    """Control and data address below `directory`. Raises TransportError if too long."""
    found = [f"ipc://{directory}/{name}" for name in ("control", "data")]
    if len(os.fsencode(found[0])) - len("ipc://") > _IPC_LIMIT:
        raise TransportError(f"{directory}: longer than a Unix socket path may be ({_IPC_LIMIT})")
    return found[0], found[1]


def _socket_options(socket: zmq.Socket[bytes] | zmq.asyncio.Socket) -> None:
    socket.setsockopt(zmq.SNDHWM, 0)  # never a silent drop: slots and groups are the bound
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_DATA_BYTES)


class Hub:
    """The stage's sockets. Use `open()`, then `receive_control` and `receive_tokens`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = -1  # descriptor of the directory, with a lock on it
        self._bound = False
        self._context = zmq.asyncio.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._pull = self._context.socket(zmq.PULL)
        self._sent: dict[bytes, int] = {}
        self._received: dict[bytes, int] = {}

    def open(self) -> None:
        """Bind, as the only one in this directory. Raises TransportError."""
        control, data = addresses(self.directory)
        try:
            make_private(self.directory)
            # First: a second bind on an ipc path succeeds, and takes the traffic.
            self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TransportError(f"{self.directory}: another stage serves there") from error
        except OSError as error:
            raise TransportError(str(error)) from error
        for socket in (self._router, self._pull):
            _socket_options(socket)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.bind(control)
        self._pull.bind(data)
        for address in (control, data):
            os.chmod(address.removeprefix("ipc://"), 0o600)
        self._bound = True

    async def receive_control(self) -> tuple[bytes, FromPeer]:
        """The next message of a peer and the identity to answer to.

        Raises WireError, which names its sender, for a frame that is no message of ours
        or out of sequence; call again.
        """
        identity, *parts = await self._next(self._router)
        try:
            return identity, self._report(identity, parts)
        except WireError as error:
            error.sender = identity
            raise

    def _report(self, identity: bytes, parts: list[bytes]) -> FromPeer:
        if len(parts) != 2 or len(parts[0]) != _SEQUENCE.size:
            raise WireError(f"control frame of {len(parts)} parts")
        sequence = _SEQUENCE.unpack(parts[0])[0]
        expected = self._received.get(identity, 0)
        self._received[identity] = sequence + 1
        message = decode_from_peer(parts[1])
        if sequence != expected:
            raise WireError(f"control message {sequence}, expected {expected}")
        return message

    async def receive_tokens(self) -> list[bytes]:
        """The parts of the next data-plane frame, undecoded."""
        return await self._next(self._pull)

    @staticmethod
    async def _next(socket: zmq.asyncio.Socket) -> list[bytes]:
        """The next message, and first a turn for every other task.

        A message that lies ready is received without leaving the task: a sender that
        is never slower than its reader would keep heartbeats and rewards waiting for
        as long as it sends (seen: 30 s, until a learner rank gave the stage up).
        """
        await asyncio.sleep(0)
        return await socket.recv_multipart()

    def send(self, identity: bytes, message: ToPeer) -> None:
        """Queue one message to a peer. Raises Unreachable if it is gone."""
        sequence = self._sent.get(identity, 0)
        future = self._router.send_multipart(
            [identity, _SEQUENCE.pack(sequence), encode(message)], flags=zmq.NOBLOCK
        )
        # With NOBLOCK it is a Future that is done, which pyzmq's types do not say.
        assert isinstance(future, asyncio.Future)
        if future.done() and (error := future.exception()) is not None:
            raise Unreachable(f"{identity.decode(errors='replace')}: {error}") from error
        self._sent[identity] = sequence + 1

    def forget(self, identity: bytes) -> None:
        """The peer is lost; a new process joins under a new identity."""
        self._sent.pop(identity, None)
        self._received.pop(identity, None)

    def close(self) -> None:
        """Send what is queued (a second at most), then close."""
        for socket in (self._router, self._pull):
            socket.close(linger=1000)
        self._context.term()
        if self._bound:
            with contextlib.suppress(OSError):  # the directory may be gone with the run
                for name in ("control", "data"):
                    (self.directory / name).unlink(missing_ok=True)
        if self._lock >= 0:
            os.close(self._lock)


class Link:
    """A peer's connection to the stage, in a thread of its own.

    Joins until welcomed, sends heartbeats, and passes every message of the
    stage to `receive` (on this thread: hand over, do not work in it).
    """

    def __init__(
        self,
        directory: Path,
        join: Join,
        receive: Callable[[ToPeer], None],
        *,
        heartbeat_s: float = 1.0,
    ) -> None:
        self._control, self._data = addresses(directory)
        self._join = join
        self._receive = receive
        self._heartbeat_s = heartbeat_s
        self._outbox: deque[tuple[bool, list[bytes]]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()  # once closed, its number may be another file's
        self._ended = False
        self._closing = threading.Event()
        self._progress = 0
        self._activity, self._budget_s = "starting", 600.0
        self._welcomed = False
        self._thread = threading.Thread(target=self._run, name=f"link-{join.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, message: FromPeer) -> None:
        """Queue a control message; any thread."""
        self._put(False, [encode(message)])

    def send_tokens(self, header: TokenBatch, tokens: bytes, logprobs: bytes) -> None:
        """Queue a data-plane frame; any thread."""
        self._put(True, [encode(header), tokens, logprobs])

    def working(self, activity: str, budget_s: float) -> None:
        """The working loop has moved on, and may now stand still for `budget_s` (0: for ever)."""
        self._progress += 1
        self._activity, self._budget_s = activity, budget_s

    def close(self) -> None:
        """Send what is queued (a second at most), then end the thread."""
        self._closing.set()
        self._poke()
        if threading.current_thread() is not self._thread and self._thread.is_alive():
            self._thread.join(timeout=5)

    def _put(self, data: bool, parts: list[bytes]) -> None:
        self._outbox.append((data, parts))
        self._poke()

    def _poke(self) -> None:
        with self._wake_lock:
            if not self._ended:
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        context = zmq.Context()
        dealer, push = context.socket(zmq.DEALER), context.socket(zmq.PUSH)
        identity = f"{self._join.name}/{os.getpid()}/{secrets.token_hex(4)}"
        for socket in (dealer, push):
            _socket_options(socket)
        dealer.setsockopt(zmq.IDENTITY, identity.encode())
        dealer.connect(self._control)
        push.connect(self._data)
        try:
            self._serve(dealer, push)
        finally:
            for socket in (dealer, push):
                socket.close(linger=1000)
            context.term()
            with self._wake_lock:
                self._ended = True
                os.close(self._wake)

    def _serve(self, dealer: zmq.Socket[bytes], push: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        sequence = expected = 0
        heard = time.monotonic()
        next_beat = 0.0
        orphaned = False
        welcome: Welcome | None = None
        alive, alive_at = Alive(), heard

        def send_control(payload: bytes) -> None:
            nonlocal sequence
            dealer.send_multipart([_SEQUENCE.pack(sequence), payload])
            sequence += 1

        while True:
            now = time.monotonic()
            if now - next_beat > self._heartbeat_s:  # late ourselves: no silence of the stage's
                heard = now
            if now >= next_beat:
                next_beat = now + self._heartbeat_s
                beat: FromPeer = (
                    Heartbeat(
                        progress=self._progress,
                        activity=self._activity,
                        budget_s=self._budget_s,
                        clock_s=now,
                        echo_s=alive.clock_s,
                        held_s=now - alive_at,
                    )
                    if self._welcomed
                    else self._join
                )
                send_control(encode(beat))
                if self._welcomed and not orphaned and now - heard > ORPHAN_S:
                    orphaned = True
                    self._receive(Shutdown(why="the stage is silent"))
            closing = self._closing.is_set()
            while self._outbox:
                data, parts = self._outbox.popleft()
                if data:
                    push.send_multipart(parts)
                else:
                    send_control(parts[0])
            if closing:
                return
            ready = dict(poller.poll(max(0, int((next_beat - time.monotonic()) * 1000))))
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            while dealer in ready:
                try:
                    frames = dealer.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                heard = time.monotonic()
                try:
                    message = _command(frames, expected)
                except WireError as error:  # what it said is lost: nothing after it is sure
                    why = f"command {expected} of the stage was lost: {error}"
                    self._receive(Shutdown(why=why))
                    continue
                finally:
                    expected += 1
                if isinstance(message, Welcome) and message == welcome:
                    continue  # the answer to a join that was repeated: nothing begins anew
                if isinstance(message, Welcome | Refused):
                    welcome = message if isinstance(message, Welcome) else None
                    self._welcomed = welcome is not None
                if isinstance(message, Alive):
                    alive, alive_at = message, heard
                else:
                    self._receive(message)


def _command(frames: list[bytes], expected: int) -> ToPeer:
    """What the stage sent as its message number `expected`. Raises WireError."""
    if len(frames) != 2 or len(frames[0]) != _SEQUENCE.size:
        raise WireError(f"control frame of {len(frames)} parts")
    if (found := _SEQUENCE.unpack(frames[0])[0]) != expected:
        raise WireError(f"{found} came")
    return decode_to_peer(frames[1])
