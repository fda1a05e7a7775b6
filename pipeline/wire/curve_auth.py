"""CURVE authentication of the stage's sockets and its peers': admits known keys only.

Fails closed: every socket names a ZAP domain and enforces it, so that without a
handler even known keys are refused (without a domain, any key is admitted). The
handler runs in `CurveAuth.serve_handshakes`, one of the stage's loops: if either ends,
so does the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import zmq
import zmq.asyncio
from zmq.auth.base import Authenticator
from zmq.utils.monitor import parse_monitor_message

from pipeline.wire.codec import MAX_DATA_BYTES
from pipeline.wire.keys import KeyOwner, KeyPair, ListenKeys, PeerKeys
from pipeline.wire.strangers import DENIED, FAILED, HANDSHAKE_MS, StrangerWatch

RECONNECT_MS = 2000
"""Longest pause between two attempts of a peer, milliseconds: spares a stage with another key."""
_DOMAIN = "darts"
# Of a question whether a CURVE key is known, as ZeroMQ's RFC 27 numbers them.
_ZAP_PARTS, _ZAP_ADDRESS = 7, 3

Socket = zmq.Socket[bytes]


def socket_options(socket: Socket | zmq.asyncio.Socket) -> None:
    """Set the options that every socket has, with keys or without."""
    socket.setsockopt(zmq.SNDHWM, 0)  # never drop silently: slots and groups limit the queue
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_DATA_BYTES)


def new_pair() -> KeyPair:
    """Make a new key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public=public.decode(), secret=secret.decode())


def show_peer_keys(socket: Socket, peer_keys: PeerKeys) -> None:
    """Set a peer's keys and the stage's key on its socket, before it connects."""
    if peer_keys.keys is None or peer_keys.server is None:
        return
    socket.curve_serverkey = peer_keys.server.encode()
    socket.curve_publickey = peer_keys.keys.public.encode()
    socket.curve_secretkey = peer_keys.keys.secret.encode()
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    # The system would ask ever more rarely a port that is shut to strangers for a while.
    socket.setsockopt(zmq.CONNECT_TIMEOUT, HANDSHAKE_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS)


def watch_handshakes(socket: Socket) -> Socket:
    """Return a socket with failed handshakes; poll it, then call `handshake_failure`."""
    return socket.get_monitor_socket(FAILED)


def handshake_failure(monitor: Socket) -> str:
    """Describe the newest failed handshake. `monitor` must be readable."""
    event = parse_monitor_message(monitor.recv_multipart())["event"]
    if event == DENIED:
        return "the stage does not know this key"
    return "the stage there has another key, or none"


class _Known:
    """The allow list, in pyzmq's form."""

    def __init__(self, allowed: Mapping[str, KeyOwner]) -> None:
        self._allowed = allowed

    def callback(self, domain: str, key: bytes) -> bool:
        return domain == _DOMAIN and key.decode() in self._allowed


class CurveAuth:
    """Admits the owners of allowed keys only. Make it before the sockets bind."""

    def __init__(self, context: zmq.asyncio.Context, listen_keys: ListenKeys) -> None:
        self._listen_keys = listen_keys
        # Domain '*' is no wildcard for sockets that name a domain.
        self._handler = Authenticator(context)
        self._handler.configure_curve_callback(_DOMAIN, _Known(listen_keys.allowed))
        self._handler.start()
        plain: zmq.Context[Socket] = zmq.Context(context)  # without asyncio, for a thread
        self.strangers = StrangerWatch(plain)

    def protect_socket(self, socket: zmq.asyncio.Socket) -> None:
        """Set up a server's socket, before it binds."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.curve_publickey = self._listen_keys.keys.public.encode()
        socket.curve_secretkey = self._listen_keys.keys.secret.encode()
        socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self.strangers.watch(socket)

    async def serve_handshakes(self) -> None:
        """Answer whether keys are known; for ever."""
        poller = zmq.asyncio.Poller()
        asked = self._handler.zap_socket
        poller.register(asked, zmq.POLLIN)
        while True:
            for _ in await poller.poll():
                await self._answer(asked.recv_multipart())

    async def _answer(self, question: list[bytes]) -> None:
        await self._handler.handle_zap_message(question)
        if len(question) == _ZAP_PARTS and self._handler.curve_user_id(question[-1]) in (
            self._listen_keys.allowed
        ):
            self.strangers.add_proved(question[_ZAP_ADDRESS].decode())

    def close(self) -> None:
        """End; the sockets must still be open."""
        self.strangers.close()
        self._handler.stop()
