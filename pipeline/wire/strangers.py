"""Connections without a key at the stage's network sockets: counted, and kept from its last files.

Everybody may open a connection; for up to `HANDSHAKE_MS` it need not prove a key, and holds a
descriptor. Where half of the process's files are in use, new ones are taken only from machines
whose peers have proved a key; beyond three quarters, from none. Those that stand go on: the sockets
stay bound, for libzmq cuts every connection of one that is unbound.

Works in a thread of its own, for a flood does not wait for the stage's loop.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import queue
import threading
import time
from collections.abc import Collection

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from pipeline.system.descriptors import open_share, soft_limit
from pipeline.system.listeners import admit_all, admit_only, listening

HANDSHAKE_MS = 5000
"""Milliseconds after which a connection that has not proved its key is closed."""
DENIED = zmq.EVENT_HANDSHAKE_FAILED_AUTH
FAILED = DENIED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_WATCHED = (
    FAILED
    | zmq.EVENT_ACCEPTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_MONITOR_STOPPED
)
_HALF, _MOST = 0.5, 0.75  # of this process's files
_POLL_MS = 250
_STEPS = 16  # the limit of files in so many: what may come in before the files are counted again
_LOG_EVERY_S = 10.0
_SAY_EVERY_S = 60.0
_BACKLOG = 100  # libzmq's own

log = logging.getLogger("stage")

Socket = zmq.Socket[bytes]


class ConnectionCount:
    """Counts a socket's connections that ended before they proved a key. Pure.

    An event does not say which connection has proved its key, and garbage causes no event but its
    end. So: whatever was accepted, did not prove a key, and can no longer do so, was refused.
    """

    def __init__(self) -> None:
        self._accepted = self._proved = self._failed = self._refused = 0
        self._young: dict[int, float] = {}  # descriptor -> when it may no longer be unproved

    def record(self, event: int, descriptor: int, now: float) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self._accepted += 1
            self._young[descriptor] = now + 1.2 * HANDSHAKE_MS / 1000
        elif event == zmq.EVENT_DISCONNECTED:
            self._young.pop(descriptor, None)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._proved += 1
        elif event & FAILED:
            self._failed += 1

    def refused(self, now: float) -> int:
        """Return how many there are for certain: all, once none has been opened for six seconds."""
        self._young = {name: until for name, until in self._young.items() if until > now}
        unproved = self._accepted - self._proved
        known = max(self._failed, unproved - len(self._young))
        self._refused = max(self._refused, min(known, unproved))
        return self._refused


class StrangerWatch:
    """Watches the stage's network sockets: `watch` each before it binds, then `start`."""

    def __init__(self, context: zmq.Context[Socket]) -> None:
        self._context = context
        self._proved: dict[str, None] = {}  # addresses, in order
        self._sockets: list[zmq.asyncio.Socket] = []
        self._counts: dict[Socket, ConnectionCount] = {}  # by its monitor
        self._step = max(8, soft_limit() // _STEPS)
        self._listeners: list[int] = []
        self._shut = 0.0  # share of files from which on it was shut; 0.0: open to all
        self._shut_until, self._said_at = 0.0, -_SAY_EVERY_S
        self._logged, self._logged_at = 0, -_LOG_EVERY_S
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="strangers", daemon=True)
        self.refused = 0
        """Connections that ended before they proved a known key."""

    def watch(self, socket: zmq.asyncio.Socket) -> None:
        """Watch a socket that is not bound yet."""
        # What waits to be accepted comes in after the socket was shut.
        socket.setsockopt(zmq.BACKLOG, min(_BACKLOG, self._step))
        address = f"inproc://strangers-{len(self._counts)}"
        socket.monitor(address, _WATCHED)
        monitor = self._context.socket(zmq.PAIR)
        monitor.connect(address)
        self._counts[monitor] = ConnectionCount()
        self._sockets.append(socket)

    def start(self, ports: Collection[int]) -> None:
        """Begin, once the sockets are bound at these ports."""
        with contextlib.suppress(OSError):  # a system without /proc does not say its share either
            self._listeners = listening(ports)
        self._thread.start()

    def add_proved(self, address: str) -> None:
        """Remember from where a known key has come."""
        with contextlib.suppress(ValueError):  # from a socket of this machine's files
            self._proved.setdefault(str(ipaddress.IPv4Address(address)))

    def news(self) -> str:
        """Return what people are to be told now, or ''."""
        with contextlib.suppress(queue.Empty):
            return self._news.get_nowait()
        return ""

    def close(self) -> None:
        """End; the sockets must still be open."""
        for socket in self._sockets:
            socket.disable_monitor()  # the last event of each is that
        if self._thread.ident is not None:
            self._thread.join()
        for monitor in self._counts:  # it was never started
            monitor.close(linger=0)

    # --- the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        for monitor in self._counts:
            poller.register(monitor, zmq.POLLIN)
        ended = 0
        while self._counts:
            for monitor, _ in poller.poll(_POLL_MS):
                if not self._read(monitor):
                    poller.unregister(monitor)
                    monitor.close(linger=0)
                    ended += self._counts.pop(monitor).refused(float("inf"))
            now = time.monotonic()
            self.refused = ended + sum(count.refused(now) for count in self._counts.values())
            self._log(now)
            self._spare_files(now)

    def _read(self, monitor: Socket) -> bool:
        """Read what has happened at a socket. False: it is closed."""
        count, now = self._counts[monitor], time.monotonic()
        for _ in range(self._step):
            try:
                event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
            if event["event"] == zmq.EVENT_MONITOR_STOPPED:
                return False
            count.record(event["event"], event["value"], now)
        return True

    def _log(self, now: float) -> None:
        # Attempts must not fill the disk.
        if self.refused > self._logged and now - self._logged_at > _LOG_EVERY_S:
            self._logged, self._logged_at = self.refused, now
            log.warning("refused %d connections without a known key so far", self.refused)

    def _spare_files(self, now: float) -> None:
        """Shut the sockets while connections use up this process's files; open them again when
        those that proved nothing have been closed."""
        share = open_share()
        if share <= _HALF:
            if self._shut and now >= self._shut_until:
                admit_all(self._listeners)
                self._shut = 0.0
            return
        self._shut_until = now + 1.2 * HANDSHAKE_MS / 1000
        step = _MOST if share > _MOST else _HALF
        if step <= self._shut:
            return
        self._shut = step
        try:
            admit_only(self._listeners, () if step == _MOST else list(self._proved))
        except OSError as error:
            self._listeners = []
            self._say(now, f"and this system cannot shut its ports: {error}")
            return
        self._say(
            now,
            "for some seconds it takes new ones only from machines of its peers, or none; peers "
            "that have joined go on",
        )

    def _say(self, now: float, what: str) -> None:
        if now - self._said_at > _SAY_EVERY_S:
            self._said_at = now
            self._news.put(f"many connections without a key use up the stage's files: {what}")
