"""The stage's ZeroMQ sockets (`client` has its peers').

Control messages travel ROUTER <-> DEALER with a sequence number in each
direction; tokens travel PUSH -> PULL. Sockets are `ipc://` in a directory that
only its owner may enter; the stage holds a lock on that directory, since a second
bind on the same ipc path silently takes the traffic. With `ListenKeys` the stage also
listens on TCP, and there every peer needs a key (`curve_auth`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import zmq
import zmq.asyncio

from pipeline.system.durable_files import naming
from pipeline.system.private_dirs import make_private
from pipeline.wire.codec import (
    MAX_DATA_BYTES,
    MAX_NETWORK_BYTES,
    decode_from_peer,
    encode_message,
)
from pipeline.wire.curve_auth import CurveAuth, socket_options
from pipeline.wire.keys import ListenKeys, TransportError, addresses, endpoint_problem
from pipeline.wire.messages import FromPeer, Join, Refused, ToPeer, WireError
from pipeline.wire.weight_transfer import WeightServer

SEQUENCE = struct.Struct("<Q")
_BULK_THREAD = 1 << 1  # the second I/O thread: weights do not delay tokens


class Unreachable(TransportError):
    """The peer is gone (or has not joined)."""


class StageServer:
    """The stage's sockets. Use `open_sockets()`, then `receive_control` and `receive_tokens`.

    Args:
        directory: holds the sockets for this machine's peers.
        listen_keys: where else to listen, and the allowed keys; None: this machine only.
        weights: directories of published weights, sent to peers of other machines.
        exposed: the stage may listen on every interface of the machine.
    """

    def __init__(
        self,
        directory: Path,
        listen_keys: ListenKeys | None = None,
        weights: Sequence[Path] = (),
        *,
        exposed: bool = False,
    ) -> None:
        self.directory = directory
        self._lock = -1  # descriptor of the directory, with a lock on it
        self._bound = False
        self._listen_keys, self._exposed = listen_keys, exposed
        self._context = zmq.asyncio.Context(io_threads=1 if listen_keys is None else 2)
        self._router = self._context.socket(zmq.ROUTER)
        self._pull = self._context.socket(zmq.PULL)
        self._bulk: zmq.asyncio.Socket | None = None
        self._weights = weights
        self.curve_auth: CurveAuth | None = None
        self._sent: dict[bytes, int] = {}
        self._received: dict[bytes, int] = {}
        self._keys: dict[bytes, str] = {}  # identity -> its key

    def open_sockets(self) -> None:
        """Lock the directory and bind. Raises TransportError."""
        control, data = addresses(self.directory)
        try:
            with naming(self.directory):
                make_private(self.directory)
                # First: a second bind on an ipc path succeeds, and takes the traffic.
                self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TransportError(f"{self.directory}: another stage is serving there") from error
        except OSError as error:
            cure = "set TMPDIR to a directory on a disk of this machine, which has locks"
            raise TransportError(f"no place for sockets: {error}; {cure}") from error
        for socket in (self._router, self._pull):
            socket_options(socket)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if self._listen_keys is not None:
            self._open_tcp(self._listen_keys)
        try:
            self._router.bind(control)
            self._pull.bind(data)
            for address in (control, data):
                os.chmod(address.removeprefix("ipc://"), 0o600)
        except (zmq.ZMQError, OSError) as error:  # some FUSE, a disk of a virtual machine's host
            cure = "set TMPDIR to a directory on a disk of this machine, which has sockets"
            raise TransportError(
                f"no place for sockets: {self.directory}: {error}; {cure}"
            ) from error
        self._bound = True

    def _open_tcp(self, listen_keys: ListenKeys) -> None:
        self.curve_auth = CurveAuth(self._context, listen_keys)
        self._bulk = self._context.socket(zmq.ROUTER)
        socket_options(self._bulk)
        self._bulk.setsockopt(zmq.AFFINITY, _BULK_THREAD)
        ports: list[int] = []
        for socket, endpoint in (
            (self._router, listen_keys.control),
            (self._pull, listen_keys.data),
            (self._bulk, listen_keys.weights),
        ):
            if problem := endpoint_problem(endpoint, exposed=self._exposed):
                raise TransportError(problem)
            self.curve_auth.protect_socket(socket)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_NETWORK_BYTES)
            try:
                socket.bind(endpoint)
            except zmq.ZMQError as error:
                raise TransportError(f"cannot listen at {endpoint}: {error}") from error
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_DATA_BYTES)  # of what is bound after it
            ports.append(int(endpoint.rpartition(":")[2]))
        self.curve_auth.strangers.start(ports)

    def news_of_strangers(self) -> str:
        """Return what people are to be told of connections without a key, or ''."""
        return "" if self.curve_auth is None else self.curve_auth.strangers.news()

    @property
    def accepts_remote(self) -> bool:
        """Peers of other machines may connect."""
        return self._listen_keys is not None

    async def serve_peers(self) -> None:
        """Answer handshakes and send weights, for ever. Without it no peer can connect over TCP."""
        serving = [] if self.curve_auth is None else [self.curve_auth.serve_handshakes()]
        if self._bulk is not None and self._weights:
            serving.append(WeightServer(self._bulk, self._weights).serve_pieces())
        await asyncio.gather(*serving)
        await asyncio.Event().wait()  # this machine only: nothing to serve

    async def receive_control(self) -> tuple[bytes, FromPeer]:
        """Return a peer's next message and the identity to answer to.

        Raises WireError, which names its sender, for a frame that is invalid or out of
        sequence; call again.
        """
        parts, key = await self._next(self._router)
        identity = parts.pop(0)
        try:
            return identity, self._report(identity, key, parts)
        except WireError as error:
            if self._keys.get(identity, key) == key:  # else another peer uses its identity
                error.sender = identity
            raise

    def _report(self, identity: bytes, key: str, parts: list[bytes]) -> FromPeer:
        if len(parts) != 2 or len(parts[0]) != SEQUENCE.size:
            raise WireError(f"control frame of {len(parts)} parts")
        sequence = SEQUENCE.unpack(parts[0])[0]
        expected = self._received.get(identity, 0)
        self._received[identity] = sequence + 1
        message = decode_from_peer(parts[1])
        if sequence != expected:
            raise WireError(f"control message {sequence}, expected {expected}")
        self._check_key(identity, key, message)
        return message

    def _check_key(self, identity: bytes, key: str, message: FromPeer) -> None:
        """Raise WireError if an identity changes its key or joins with another peer's name."""
        theirs = self._keys.setdefault(identity, key) == key
        if isinstance(message, Join):
            theirs = theirs and self.admits_key(key, message.role, message.name)
        if not theirs:
            if isinstance(message, Join):
                why = f"its key is not that of {message.role} {message.name}"
                with contextlib.suppress(Unreachable):
                    self.send(identity, Refused(why=why))
            raise WireError("it uses a key that is not its own")

    def admits_key(self, key: str, role: str, name: str) -> bool:
        """Return True if messages with `key` may come from this peer."""
        return self._listen_keys is None or self._listen_keys.admits(key, role, name)

    async def receive_tokens(self) -> tuple[list[bytes], str]:
        """Return the undecoded parts of the next data-plane frame, and its key."""
        return await self._next(self._pull)

    async def _next(self, socket: zmq.asyncio.Socket) -> tuple[list[bytes], str]:
        """Give every other task a turn, then return the next message and its sender's key (or '').

        A waiting message is received without a task switch: a sender that is never slower
        than its reader would block heartbeats and rewards as long as it sends (seen: 30 s,
        until a learner rank gave up the stage).
        """
        await asyncio.sleep(0)
        if self._listen_keys is None:
            return await socket.recv_multipart(), ""
        frames = await socket.recv_multipart(copy=False)
        return [frame.bytes for frame in frames], str(frames[-1].get("User-Id"))

    def send(self, identity: bytes, message: ToPeer) -> None:
        """Queue one message to a peer. Raises Unreachable if it is gone."""
        sequence = self._sent.get(identity, 0)
        future = self._router.send_multipart(
            [identity, SEQUENCE.pack(sequence), encode_message(message)], flags=zmq.NOBLOCK
        )
        # With NOBLOCK it is a finished Future, which pyzmq's types do not say.
        assert isinstance(future, asyncio.Future)
        if future.done() and (error := future.exception()) is not None:
            raise Unreachable(f"{identity.decode(errors='replace')}: {error}") from error
        self._sent[identity] = sequence + 1

    def forget_peer(self, identity: bytes) -> None:
        """Forget a lost peer; a new process joins under a new identity."""
        self._sent.pop(identity, None)
        self._received.pop(identity, None)
        self._keys.pop(identity, None)

    def close(self) -> None:
        """Send queued messages (for a second at most), then close."""
        if self.curve_auth is not None:
            self.curve_auth.close()
        for socket in (self._router, self._pull):
            socket.close(linger=1000)
        if self._bulk is not None:
            self._bulk.close(linger=0)
        self._context.term()
        if self._bound:
            with contextlib.suppress(OSError):  # the directory may be gone with the run
                for name in ("control", "data"):
                    (self.directory / name).unlink(missing_ok=True)
        if self._lock >= 0:
            os.close(self._lock)
