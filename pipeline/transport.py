"""The stage's ZeroMQ sockets (`link` has its peers').

Control messages travel ROUTER <-> DEALER with a sequence number in each
direction; tokens travel PUSH -> PULL. Sockets are `ipc://` in a directory that
only its owner may enter; whoever binds holds a lock on the run, for a second
bind on the same ipc path silently takes the traffic. With an entrance (`keys`) the stage listens
on TCP, too, and then every peer shows a key (`guard`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from pathlib import Path

import zmq
import zmq.asyncio

from pipeline.chunks import Pieces
from pipeline.codec import decode_from_peer, encode
from pipeline.guard import Guard, socket_options
from pipeline.keys import Entrance, TransportError, addresses, complaint
from pipeline.messages import FromPeer, Join, Refused, ToPeer, WireError

SEQUENCE = struct.Struct("<Q")
_BULK_THREAD = 1 << 1  # of the two that carry bytes: weights keep no token waiting


class Unreachable(TransportError):
    """The peer is gone (or has not joined)."""


class Hub:
    """The stage's sockets. Use `open()`, then `receive_control` and `receive_tokens`.

    Args:
        directory: of the sockets of this machine's peers.
        entrance: where else to listen, and whom to let in; None: this machine alone.
        weights: what is published there is sent to peers of other machines.
        exposed: the entrance may be every interface of the machine.
    """

    def __init__(
        self,
        directory: Path,
        entrance: Entrance | None = None,
        weights: Path | None = None,
        *,
        exposed: bool = False,
    ) -> None:
        self.directory = directory
        self.refused_frames = 0
        """Control frames that did not decode, came out of sequence or from another's key."""
        self._entrance, self._exposed = entrance, exposed
        self._context = zmq.asyncio.Context(io_threads=1 if entrance is None else 2)
        self._router = self._context.socket(zmq.ROUTER)
        self._pull = self._context.socket(zmq.PULL)
        self._bulk: zmq.asyncio.Socket | None = None
        self._weights = weights
        self.guard: Guard | None = None
        self._sent: dict[bytes, int] = {}
        self._received: dict[bytes, int] = {}
        self._keys: dict[bytes, str] = {}  # identity -> key that it came with

    def open(self) -> None:
        """Bind. The caller holds the run's lock. Raises TransportError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(self.directory, 0o700)
        control, data = addresses(self.directory)
        for socket in (self._router, self._pull):
            socket_options(socket)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if self._entrance is not None:
            self._open_entrance(self._entrance)
        self._router.bind(control)
        self._pull.bind(data)

    def _open_entrance(self, entrance: Entrance) -> None:
        self.guard = Guard(self._context, entrance)
        self._bulk = self._context.socket(zmq.ROUTER)
        socket_options(self._bulk)
        self._bulk.setsockopt(zmq.AFFINITY, _BULK_THREAD)
        for socket, endpoint in (
            (self._router, entrance.control),
            (self._pull, entrance.data),
            (self._bulk, entrance.weights),
        ):
            if problem := complaint(endpoint, exposed=self._exposed):
                raise TransportError(problem)
            self.guard.protect(socket)
            try:
                socket.bind(endpoint)
            except zmq.ZMQError as error:
                raise TransportError(f"cannot listen at {endpoint}: {error}") from error

    @property
    def far(self) -> bool:
        """Whether peers of other machines may be connected."""
        return self._entrance is not None

    async def attend(self) -> None:
        """Let peers in and send them weights; for ever. Without it nobody gets in."""
        serving = [] if self.guard is None else [self.guard.serve()]
        if self._bulk is not None and self._weights is not None:
            serving.append(Pieces(self._bulk, self._weights).serve())
        await asyncio.gather(*serving)
        await asyncio.Event().wait()  # this machine alone: nobody to attend to

    async def receive_control(self) -> tuple[bytes, FromPeer]:
        """The next message of a peer and the identity to answer to.

        Raises WireError for a frame that is no message of ours; call again.
        """
        parts, key = await self._next(self._router)
        if len(parts) != 3 or len(parts[1]) != SEQUENCE.size:
            self.refused_frames += 1
            raise WireError(f"control frame of {len(parts)} parts")
        identity = parts[0]
        sequence = SEQUENCE.unpack(parts[1])[0]
        expected = self._received.get(identity, 0)
        try:
            message = decode_from_peer(parts[2])
        except WireError:
            self.refused_frames += 1
            raise
        finally:
            self._received[identity] = sequence + 1
        if sequence != expected:
            self.refused_frames += 1
            raise WireError(f"{identity!r}: control message {sequence}, expected {expected}")
        self._check_key(identity, key, message)
        return identity, message

    def _check_key(self, identity: bytes, key: str, message: FromPeer) -> None:
        """An identity keeps its key, and joins as nobody but the key's bearer."""
        theirs = self._keys.setdefault(identity, key) == key
        if isinstance(message, Join):
            theirs = theirs and self.admits(key, message.role, message.name)
        if not theirs:
            self.refused_frames += 1
            if isinstance(message, Join):
                why = f"its key is not that of {message.role} {message.name}"
                with contextlib.suppress(Unreachable):
                    self.send(identity, Refused(why=why))
            raise WireError(f"{identity!r} shows a key that is not its own")

    def admits(self, key: str, role: str, name: str) -> bool:
        """Whether what came with `key` may be of this peer."""
        return self._entrance is None or self._entrance.admits(key, role, name)

    async def receive_tokens(self) -> tuple[list[bytes], str]:
        """The parts of the next data-plane frame, undecoded, and the key that it came with."""
        return await self._next(self._pull)

    async def _next(self, socket: zmq.asyncio.Socket) -> tuple[list[bytes], str]:
        """The next message and its sender's key ('' without), and first a turn for every other
        task.

        A message that lies ready is received without leaving the task: a sender that
        is never slower than its reader would keep heartbeats and rewards waiting for
        as long as it sends (seen: 30 s, until a learner rank gave the stage up).
        """
        await asyncio.sleep(0)
        if self._entrance is None:
            return await socket.recv_multipart(), ""
        frames = await socket.recv_multipart(copy=False)
        return [frame.bytes for frame in frames], str(frames[-1].get("User-Id"))

    def send(self, identity: bytes, message: ToPeer) -> None:
        """Queue one message to a peer. Raises Unreachable if it is gone."""
        sequence = self._sent.get(identity, 0)
        future = self._router.send_multipart(
            [identity, SEQUENCE.pack(sequence), encode(message)], flags=zmq.NOBLOCK
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
        self._keys.pop(identity, None)

    def close(self) -> None:
        """Send what is queued (a second at most), then close."""
        for socket in (self._router, self._pull):
            socket.close(linger=1000)
        if self._bulk is not None:
            self._bulk.close(linger=0)
        if self.guard is not None:
            self.guard.close()
        self._context.term()
        with contextlib.suppress(OSError):  # the directory may be gone with the run
            for name in ("control", "data"):
                (self.directory / name).unlink(missing_ok=True)
