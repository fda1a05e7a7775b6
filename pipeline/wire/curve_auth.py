"""CURVE on the stage's sockets and its peers': who is let in, and who was not.

Fails closed: every socket names a ZAP domain and enforces it, so that with no
handler behind it even known keys are refused (without, any key is let in). The
handler runs in `Guard.serve`, one of the stage's loops: it ends with the stage,
and the stage with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import zmq
import zmq.asyncio
from zmq.auth.base import Authenticator
from zmq.utils.monitor import parse_monitor_message

from pipeline.wire.codec import MAX_DATA_BYTES
from pipeline.wire.keys import KeyOwner, KeyPair, ListenKeys, PeerKeys

HANDSHAKE_MS = 5000
"""A connection that has not proved its key by then is closed."""
RECONNECT_MS = 2000
"""Longest pause between two attempts of a peer: a stage with another key is not hammered."""
_DOMAIN = "darts"
_SAY_EVERY_S = 10.0
_DENIED = zmq.EVENT_HANDSHAKE_FAILED_AUTH
_FAILED = _DENIED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL

log = logging.getLogger("stage")

Socket = zmq.Socket[bytes]


def socket_options(socket: Socket | zmq.asyncio.Socket) -> None:
    """What every socket has, keys or not."""
    socket.setsockopt(zmq.SNDHWM, 0)  # never a silent drop: slots and groups are the bound
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_DATA_BYTES)


def new_pair() -> KeyPair:
    """Fresh keys."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public=public.decode(), secret=secret.decode())


def show_peer_keys(socket: Socket, peer_keys: PeerKeys) -> None:
    """Before a peer's socket connects: its keys, and the key it expects there."""
    if peer_keys.keys is None or peer_keys.server is None:
        return
    socket.curve_serverkey = peer_keys.server.encode()
    socket.curve_publickey = peer_keys.keys.public.encode()
    socket.curve_secretkey = peer_keys.keys.secret.encode()
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS)


def watch_handshakes(socket: Socket) -> Socket:
    """What becomes of a peer's attempts to connect; poll it, then ask `refusal`."""
    return socket.get_monitor_socket(_FAILED)


def handshake_failure(monitor: Socket) -> str:
    """The newest failed handshake in words; '' without one. `monitor` is readable."""
    event = parse_monitor_message(monitor.recv_multipart())["event"]
    if event == _DENIED:
        return "the stage does not know this key"
    return "the stage there has another key, or none"


class _Known:
    """The allow list, as pyzmq asks for it."""

    def __init__(self, allowed: Mapping[str, KeyOwner]) -> None:
        self._allowed = allowed

    def callback(self, domain: str, key: bytes) -> bool:
        return domain == _DOMAIN and key.decode() in self._allowed


class CurveAuth:
    """Lets the bearers of an entrance in, and nobody else. Made before the sockets bind."""

    def __init__(self, context: zmq.asyncio.Context, listen_keys: ListenKeys) -> None:
        self._listen_keys = listen_keys
        # The same context, whose sockets wait for nobody: they are read when the poller says so.
        self._plain: zmq.Context[Socket] = zmq.Context(context)
        # Domain '*' would be no wildcard for sockets that name theirs.
        self._handler = Authenticator(context)
        self._handler.configure_curve_callback(_DOMAIN, _Known(listen_keys.allowed))
        self._handler.start()
        self._monitors: list[Socket] = []
        self.refused = 0
        """Connections that ended before they had proved a known key."""
        self._said_at = 0.0

    def protect_socket(self, socket: zmq.asyncio.Socket) -> None:
        """A server's socket, before it binds."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.curve_publickey = self._listen_keys.keys.public.encode()
        socket.curve_secretkey = self._listen_keys.keys.secret.encode()
        socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        address = f"inproc://turned-away-{len(self._monitors)}"
        socket.monitor(address, _FAILED)
        monitor = self._plain.socket(zmq.PAIR)
        monitor.connect(address)
        self._monitors.append(monitor)

    async def serve_handshakes(self) -> None:
        """Answer whether keys are known, and count who was turned away; for ever."""
        poller = zmq.asyncio.Poller()
        for socket in (self._handler.zap_socket, *self._monitors):
            poller.register(socket, zmq.POLLIN)
        while True:
            for socket, _ in await poller.poll():
                if socket is self._handler.zap_socket:
                    await self._handler.handle_zap_message(socket.recv_multipart())
                else:
                    socket.recv_multipart()
                    self._turned_away()

    def _turned_away(self) -> None:
        self.refused += 1
        if time.monotonic() - self._said_at > _SAY_EVERY_S:  # whoever knocks must not fill a disk
            self._said_at = time.monotonic()
            log.warning("turned away: %d connections without a known key so far", self.refused)

    def close(self) -> None:
        for monitor in self._monitors:
            monitor.close(linger=0)
        self._handler.stop()
