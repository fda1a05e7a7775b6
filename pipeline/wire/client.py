"""A peer's connection to its stage, in a thread of its own: heartbeats continue while it computes.

Turns a peer's messages into frames and the stage's frames into messages. Repeats its
join until it is welcomed. Over a network, an engine whose stage falls silent drops the
connection and joins again, as a new identity: the stage ignores what the old one sent
(`server` is the other end, `curve_auth` the keys).
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

from pipeline.wire.codec import decode_to_peer, encode_message
from pipeline.wire.curve_auth import (
    handshake_failure,
    show_peer_keys,
    socket_options,
    watch_handshakes,
)
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
"""Seconds of silence of its stage after which a peer shuts down. For peers that no launcher
watches: a launcher's children end with it, whatever their stage does."""
SILENT_S = 4.0
"""Seconds of silence after which an engine on another machine treats the connection as lost:
sooner than the stage does, which would shut the engine down (`timeouts.heartbeat_s`)."""
HUNG = 70
"""Exit status of a process that hung and did not act on a shutdown message."""
HUNG_S = 20.0
"""Seconds from a shutdown message with a fault to the end of a process that has not closed its
client: it hangs. For peers that no launcher watches, or not this closely."""
DENIED_S = 30.0
"""Seconds of refusals after which a peer gives up: the stage may learn its key a little later."""


class _Connection:
    """The sockets of one identity, from its first join on."""

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
        self.monitors = {watch_handshakes(socket): endpoint for socket, endpoint in watched}
        for socket, endpoint in self._ends:
            socket.connect(endpoint)
        self._sequence = self._expected = 0
        self.heard = heard  # when the stage was last heard, on this connection or the one before
        self.refused = ""  # why the connection is dead
        self.welcome: Welcome | None = None
        self.alive, self.alive_at = Alive(), self.heard

    def send(self, payload: bytes) -> bool:
        """Send a control message. False: the connection is dead."""
        sent = self._send(self.control, [SEQUENCE.pack(self._sequence), payload])
        self._sequence += sent
        return sent

    def send_data(self, parts: list[bytes]) -> bool:
        """Send a data-plane frame. False: the connection is dead."""
        return self._send(self._data, parts)

    def _send(self, socket: zmq.Socket[bytes], parts: list[bytes]) -> bool:
        try:
            socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:  # queues have no limit: it was denied since the monitors were polled
            for monitor in self.monitors:
                if monitor.poll(0):
                    self.see_refusal(monitor)
            self.refused = self.refused or "the connection was denied"
            return False
        return True

    def receive(self) -> ToPeer | None:
        """Return the next message, or a shutdown if one was lost; None: there is none."""
        try:
            frames = self.control.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        self.heard = time.monotonic()
        expected, self._expected = self._expected, self._expected + 1
        try:
            return _command(frames, expected)
        except WireError as error:  # a command is lost: later ones may depend on it
            return Shutdown(why=f"command {expected} of the stage was lost: {error}")

    def see_refusal(self, monitor: zmq.Socket[bytes]) -> None:
        """Read a failed handshake. A denied socket never tries again by itself."""
        self.refused = f"{self.monitors[monitor]}: {handshake_failure(monitor)}"

    def close(self, linger_ms: int) -> None:
        for socket, _ in self._ends:
            socket.disable_monitor()
        for monitor in self.monitors:
            monitor.close(linger=0)
        for socket, _ in self._ends:
            socket.close(linger=0 if self.refused else linger_ms)


def _command(frames: list[bytes], expected: int) -> ToPeer:
    """Decode the stage's message number `expected`. Raises WireError."""
    if len(frames) != 2 or len(frames[0]) != SEQUENCE.size:
        raise WireError(f"control frame of {len(frames)} parts")
    if (found := SEQUENCE.unpack(frames[0])[0]) != expected:
        raise WireError(f"{found} came")
    return decode_to_peer(frames[1])


class StageClient:
    """Joins a stage, sends heartbeats, and passes every message of the stage to `receive`
    (in the client's thread: hand over, do not work in it).

    Args:
        stage: the directory of its sockets, a key file, or the content of one.
        hung_s: see `HUNG_S`.
    """

    def __init__(
        self,
        stage: Path | PeerKeys,
        join: Join,
        receive: Callable[[ToPeer], None],
        *,
        heartbeat_s: float = 1.0,
        hung_s: float = HUNG_S,
    ) -> None:
        self._peer_keys = stage if isinstance(stage, PeerKeys) else peer_keys_of(stage)
        self._join = join
        # A learner's work depends on its connection: it waits out a cut (`nodes.patience_s`).
        self._rejoins = self._peer_keys.keys is not None and join.role == "engine"
        self._receive = receive
        self._heartbeat_s, self._hung_s = heartbeat_s, hung_s
        self._outbox: deque[tuple[bool, list[bytes]]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()  # once closed, its number may belong to another file
        self._ended = False
        self._closing = threading.Event()
        self._progress = 0
        self._activity, self._budget_s = "starting", 600.0
        self._heard = time.monotonic()
        self._welcomed = self._ending = False
        self._denied_at = 0.0  # when refusals began; 0.0: not refused
        self._faulted_at = 0.0  # when a shutdown for a fault came; 0.0: never
        self._thread = threading.Thread(target=self._run, name=f"client-{join.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, message: FromPeer) -> None:
        """Queue a control message; any thread."""
        self._put(False, [encode_message(message)])

    def send_tokens(self, header: TokenBatch, tokens: bytes, logprobs: bytes) -> None:
        """Queue a data-plane frame; any thread."""
        self._put(True, [encode_message(header), tokens, logprobs])

    def set_activity(self, activity: str, budget_s: float) -> None:
        """Report progress of the working loop; it may stand still for `budget_s` (0: for ever)."""
        self._progress += 1
        self._activity, self._budget_s = activity, budget_s

    @property
    def stage_silent_s(self) -> float:
        """Seconds since the stage was last heard; any thread."""
        return time.monotonic() - self._heard

    def close(self) -> None:
        """Send queued messages (for a second at most), then end the thread."""
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
                    # Messages queued for a lost connection are of an epoch that has ended.
                    connection.close(1000 if self._closing.is_set() else 0)
        finally:
            context.term()
            with self._wake_lock:
                self._ended = True
                os.close(self._wake)

    def _serve(self, connection: _Connection) -> None:
        """Serve a connection until the client is closed or should use a new connection."""
        poller = zmq.Poller()
        poller.register(connection.control, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        for monitor in connection.monitors:
            poller.register(monitor, zmq.POLLIN)
        next_beat = 0.0
        while True:
            now = time.monotonic()
            if next_beat and now - next_beat > self._heartbeat_s:
                connection.heard = now  # this thread was late: the stage was not silent
            if now >= next_beat:
                next_beat = now + self._heartbeat_s
                if self._useless(connection, now):
                    return
                connection.send(encode_message(self._beat(connection, now)))
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
                self._heard = connection.heard
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
        """Return True to replace this connection. Ends the peer where that would not help."""
        silent_s = now - connection.heard
        if self._faulted_at and now - self._faulted_at > self._hung_s:
            os._exit(HUNG)
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
        if not self._ending:
            self._ending = True
            self._receive(message)

    def _send_queued(self, connection: _Connection) -> None:
        while self._outbox and not connection.refused:
            data, parts = self._outbox.popleft()
            if data and self._rejoins and connection.welcome is None:
                continue  # of an epoch that has ended: the stage would reject it
            if not (connection.send_data(parts) if data else connection.send(parts[0])):
                self._outbox.appendleft((data, parts))

    def _take(self, connection: _Connection, message: ToPeer) -> None:
        self._denied_at = 0.0
        if isinstance(message, Welcome) and message == connection.welcome:
            return  # the answer to a repeated join: no new epoch
        if isinstance(message, Welcome | Refused):
            connection.welcome = message if isinstance(message, Welcome) else None
            self._welcomed = connection.welcome is not None
        if isinstance(message, Shutdown) and message.why:
            self._faulted_at = self._faulted_at or connection.heard
        if isinstance(message, Alive):
            connection.alive, connection.alive_at = message, connection.heard
        else:
            self._receive(message)
