"""A peer's connection to its stage, in a thread of its own: heartbeats go on while it computes.

Turns what a peer says into frames and the stage's frames into messages. Joins
until welcomed. Over a network an engine whose stage falls silent drops the
connection and joins anew, as a new identity: the stage fences what was said
before (`transport` is the other end, `guard` the keys).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import zmq

from pipeline.wire.codec import decode_to_peer, encode
from pipeline.wire.curve_auth import refusal, show_peer_keys, socket_options, watch
from pipeline.wire.keys import PeerKeys, peer_keys_of
from pipeline.wire.messages import (
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
from pipeline.wire.server import SEQUENCE

ORPHAN_S = 120.0
"""A peer that has not heard of its stage for so long shuts itself down: for parts that no launcher
watches. A launcher's children end with it, whatever their stage does."""
SILENT_S = 4.0
"""An engine of another machine then takes the connection for cut: sooner than the stage, which
would tell it to end (`timeouts.heartbeat_s`)."""
DEAF = 70
"""Exit status of a process that did not hear that it was to end."""
DEAF_S = 20.0
"""A process that was told to end for a fault, and has not closed its link after so long, hangs: it
is ended from here. For parts that no launcher watches, or not this closely."""
DENIED_S = 30.0
"""A peer that nobody lets in for so long gives up: its key may only be a little early."""


class _Connection:
    """One identity's sockets, from its first join on."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], peer_keys: PeerKeys, name: str, heard: float
    ) -> None:
        self.control, self._data = context.socket(zmq.DEALER), context.socket(zmq.PUSH)
        identity = f"{name}/{os.getpid()}/{secrets.token_hex(4)}"
        for socket in (self.control, self._data):
            socket_options(socket)
            show_peer_keys(socket, peer_keys)
        self.control.setsockopt(zmq.IDENTITY, identity.encode())
        self._ends = ((self.control, peer_keys.control), (self._data, peer_keys.data))
        watched = self._ends if peer_keys.keys is not None else ()
        self.monitors = {watch(socket): endpoint for socket, endpoint in watched}
        for socket, endpoint in self._ends:
            socket.connect(endpoint)
        self._sequence = self._expected = 0
        self.heard = heard  # of the stage, by this connection or the one before
        self.refused = ""  # why nothing more will come of it: no use in sending, it would block
        self.welcome: Welcome | None = None
        self.alive, self.alive_at = Alive(), self.heard

    def send(self, payload: bytes) -> None:
        self.control.send_multipart([SEQUENCE.pack(self._sequence), payload])
        self._sequence += 1

    def send_data(self, parts: list[bytes]) -> None:
        self._data.send_multipart(parts)

    def receive(self) -> ToPeer | None:
        """The next message, or the end, where one was lost; None: there is none."""
        try:
            frames = self.control.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        self.heard = time.monotonic()
        expected, self._expected = self._expected, self._expected + 1
        try:
            return _command(frames, expected)
        except WireError as error:  # what it said is lost: nothing after it is sure
            return Shutdown(why=f"command {expected} of the stage was lost: {error}")

    def see_refusal(self, monitor: zmq.Socket[bytes]) -> None:
        """It has something to say. A client that was denied never tries again by itself."""
        self.refused = f"{self.monitors[monitor]}: {refusal(monitor)}"

    def close(self, linger_ms: int) -> None:
        for socket, _ in self._ends:
            socket.disable_monitor()
        for monitor in self.monitors:
            monitor.close(linger=0)
        for socket, _ in self._ends:
            socket.close(linger=0 if self.refused else linger_ms)


def _command(frames: list[bytes], expected: int) -> ToPeer:
    """What the stage sent as its message number `expected`. Raises WireError."""
    if len(frames) != 2 or len(frames[0]) != SEQUENCE.size:
        raise WireError(f"control frame of {len(frames)} parts")
    if (found := SEQUENCE.unpack(frames[0])[0]) != expected:
        raise WireError(f"{found} came")
    return decode_to_peer(frames[1])


class StageClient:
    """Joins until welcomed, sends heartbeats, and passes every message of the
    stage to `receive` (on this thread: hand over, do not work in it).

    Args:
        stage: the directory of its sockets, a key file, or what stands in one.
        deaf_s: patience with a process that was told to end, for a fault, and does not.
    """

    def __init__(
        self,
        stage: Path | PeerKeys,
        join: Join,
        receive: Callable[[ToPeer], None],
        *,
        heartbeat_s: float = 1.0,
        deaf_s: float = DEAF_S,
    ) -> None:
        self._peer_keys = stage if isinstance(stage, PeerKeys) else peer_keys_of(stage)
        self._join = join
        # A learner's work is in its connection: a cut is waited for (`nodes.patience_s`).
        self._rejoins = self._peer_keys.keys is not None and join.role == "engine"
        self._receive = receive
        self._heartbeat_s, self._deaf_s = heartbeat_s, deaf_s
        self._outbox: deque[tuple[bool, list[bytes]]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()  # once closed, its number may be another file's
        self._ended = False
        self._closing = threading.Event()
        self._progress = 0
        self._activity, self._budget_s = "starting", 600.0
        self._welcomed = self._told_to_end = False
        self._denied_at = 0.0  # since when nobody lets us in; 0.0: somebody may
        self._faulted_at = 0.0  # when it was told to end for a fault; 0.0: never
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

    # --- the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        context = zmq.Context()
        heard = time.monotonic()
        try:
            while not self._closing.is_set():
                connection = _Connection(context, self._peer_keys, self._join.name, heard)
                try:
                    self._serve(connection)
                finally:
                    heard = connection.heard
                    # What is queued for a connection that is cut is of an epoch that has ended.
                    connection.close(1000 if self._closing.is_set() else 0)
        finally:
            context.term()
            with self._wake_lock:
                self._ended = True
                os.close(self._wake)

    def _serve(self, connection: _Connection) -> None:
        """Until the link is closed, or the stage has fallen silent and may be joined anew."""
        poller = zmq.Poller()
        poller.register(connection.control, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        for monitor in connection.monitors:
            poller.register(monitor, zmq.POLLIN)
        next_beat = 0.0
        while True:
            now = time.monotonic()
            if (
                next_beat and now - next_beat > self._heartbeat_s
            ):  # late ourselves: no silence of the stage's
                connection.heard = now
            if now >= next_beat:
                next_beat = now + self._heartbeat_s
                if self._useless(connection, now):
                    return
                connection.send(encode(self._beat(connection, now)))
            closing = self._closing.is_set()
            self._send_queued(connection)
            if closing:
                return
            ready = dict(poller.poll(max(0, int((next_beat - time.monotonic()) * 1000))))
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            for monitor in connection.monitors.keys() & ready.keys():
                connection.see_refusal(monitor)
            while connection.control in ready and (heard := connection.receive()):
                self._take(connection, heard)

    def _beat(self, connection: _Connection, now: float) -> FromPeer:
        if connection.welcome is None:
            return self._join
        return Heartbeat(
            progress=self._progress,
            activity=self._activity,
            budget_s=self._budget_s,
            clock_s=now,
            echo_s=connection.alive.clock_s,
            held_s=now - connection.alive_at,
        )

    def _useless(self, connection: _Connection, now: float) -> bool:
        """Whether to leave this connection for a new one. Gives up where that is no use either."""
        silent_s = now - connection.heard
        if self._faulted_at and now - self._faulted_at > self._deaf_s:
            os._exit(DEAF)
        if connection.refused:
            self._denied_at = self._denied_at or now
            if now - self._denied_at > DENIED_S:
                self._end(Refused(why=connection.refused))
            return True
        if self._rejoins and connection.welcome is not None and silent_s > SILENT_S:
            return True
        if self._welcomed and silent_s > ORPHAN_S:
            self._end(Shutdown(why="the stage is silent"))
        return False

    def _end(self, message: Refused | Shutdown) -> None:
        if not self._told_to_end:
            self._told_to_end = True
            self._receive(message)

    def _send_queued(self, connection: _Connection) -> None:
        while self._outbox and not connection.refused:
            data, parts = self._outbox.popleft()
            if data and self._rejoins and connection.welcome is None:
                continue  # of an epoch that has ended: nobody would take it
            if data:
                connection.send_data(parts)
            else:
                connection.send(parts[0])

    def _take(self, connection: _Connection, message: ToPeer) -> None:
        self._denied_at = 0.0
        if isinstance(message, Welcome) and message == connection.welcome:
            return  # the answer to a join that was repeated: nothing begins anew
        if isinstance(message, Welcome | Refused):
            connection.welcome = message if isinstance(message, Welcome) else None
            self._welcomed = connection.welcome is not None
        if isinstance(message, Shutdown) and message.why:
            self._faulted_at = self._faulted_at or connection.heard
        if isinstance(message, Alive):
            connection.alive, connection.alive_at = message, connection.heard
        else:
            self._receive(message)
