"""A small HTTP server for figures: whatever comes to its port, it costs a thread and a few files.

Every user of the machine may connect to a port on the loopback. One thread serves at most
`MOST` connections at once, each for a limited time; who comes beyond that takes the place of the
oldest, and new ones are taken in at a limited rate, so that a flood finds a full queue in the
kernel and not a busy stage. The figures are for those whom `may_read` admits, by the user that the
system names as the other end's.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable

from pipeline.observability.peer_user import user_of

MOST = 16
"""Connections at once."""
DEADLINE_S = 5.0
"""How long one may take, from its first byte to the last of the answer."""
_PAUSE_S = 0.01  # after each new connection: at most a hundred a second
_REQUEST_BYTES = 8 << 10
_TICK_S = 0.5


class _Visit:
    """One connection: a request as far as it has come, or what is left of the answer."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.until = connection, time.monotonic() + DEADLINE_S
        self.request, self.answer = b"", b""


class MetricsServer:
    """Serves `content()` of a media type at http://HOST:PORT/metrics until it is closed.

    Args:
        may_read: whether a user of the machine, by its number, gets the content; None: its
            number is not known.

    Raises: OSError if it cannot listen there.
    """

    def __init__(
        self,
        host: str,
        port: int,
        content: Callable[[], bytes],
        media: str,
        may_read: Callable[[int | None], bool],
    ) -> None:
        self._content, self._media, self._may_read = content, media, may_read
        self._listening = socket.create_server((host, port), backlog=MOST)
        self._listening.setblocking(False)
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._visits: dict[int, _Visit] = {}  # by descriptor, the oldest first
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    @property
    def open_connections(self) -> int:
        return len(self._visits)

    def close(self) -> None:
        self._closing = True
        self._wake.send(b"x")
        self._thread.join(DEADLINE_S)

    def _serve(self) -> None:
        while not self._closing:
            for key, events in self._selector.select(_TICK_S):
                if key.fileobj is self._listening:
                    self._admit()
                elif (visit := self._visits.get(key.fd)) is not None:
                    self._go_on(visit, events)
            now = time.monotonic()
            for visit in [v for v in self._visits.values() if v.until <= now]:
                self._end(visit)
        for visit in list(self._visits.values()):
            self._end(visit)
        self._selector.close()
        for used in (self._listening, self._wake, self._woken):
            used.close()

    def _admit(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError:  # it has left again, or there is no descriptor for it
            time.sleep(_PAUSE_S)
            return
        connection.setblocking(False)
        if len(self._visits) >= MOST:
            self._end(next(iter(self._visits.values())))
        self._visits[connection.fileno()] = _Visit(connection)
        self._selector.register(connection, selectors.EVENT_READ)
        time.sleep(_PAUSE_S)

    def _go_on(self, visit: _Visit, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and not visit.answer:
                self._read(visit)
            elif events & selectors.EVENT_WRITE:
                visit.answer = visit.answer[visit.connection.send(visit.answer) :]
                if not visit.answer:
                    self._end(visit)
        except BlockingIOError:
            pass
        except OSError:
            self._end(visit)

    def _read(self, visit: _Visit) -> None:
        received = visit.connection.recv(_REQUEST_BYTES)
        visit.request += received
        if b"\r\n\r\n" in visit.request:
            visit.answer = self._answer(visit)
            self._selector.modify(visit.connection, selectors.EVENT_WRITE)
        elif not received or len(visit.request) > _REQUEST_BYTES:
            self._end(visit)

    def _answer(self, visit: _Visit) -> bytes:
        method, _, rest = visit.request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method != b"GET" or path not in (b"/metrics", b"/"):
            return _refusal("404 Not Found", "GET /metrics")
        if not self._may_read(user_of(visit.connection)):
            return _refusal("403 Forbidden", "these figures are their owner's; see metrics.group")
        body = self._content()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {self._media}\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + body

    def _end(self, visit: _Visit) -> None:
        self._visits.pop(visit.connection.fileno(), None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(visit.connection)
        visit.connection.close()


def _refusal(status: str, why: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(why) + 1}\r\n"
    return f"{head}Connection: close\r\n\r\n{why}\n".encode()
