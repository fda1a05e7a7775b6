"""Transfers published weights between machines, in pieces that are requested one by one.

`WeightServer` answers on the stage's machine, where the learner publishes; `fetch_weights`
requests a few pieces ahead, and resumes when the connection breaks. Neither verifies the
file: the receiver checks it against its manifest.
"""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from pipeline.wire.curve_auth import (
    handshake_failure,
    show_peer_keys,
    socket_options,
    watch_handshakes,
)
from pipeline.wire.fields import Count
from pipeline.wire.keys import PeerKeys, TransportError

FILE = "model.safetensors"
PIECE_BYTES = 4 << 20
AHEAD = 8
"""Pieces requested ahead: 32 MiB fill a network link of 10 Gbit/s and 25 ms."""
RETRY_S = 5.0
"""Seconds without a piece after which the connection is made anew."""
_KEPT = 2  # versions; the learner keeps as many


class PieceRequest(msgspec.Struct, frozen=True, array_like=True):
    """Requests one piece of a version's file."""

    version: Count
    offset: Count


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """Sent before the bytes of a piece; `total` 0: the version is no longer published."""

    version: Count
    offset: Count
    total: Count


_encode = msgspec.msgpack.encode
_ask = msgspec.msgpack.Decoder(PieceRequest)
_piece = msgspec.msgpack.Decoder(Piece)


class WeightServer:
    """Serves pieces of published weights on one of the stage's sockets.

    Args:
        socket: a ROUTER, bound.
        directories: where versions are published, `vN/model.safetensors`.
    """

    def __init__(self, socket: zmq.asyncio.Socket, directories: Sequence[Path]) -> None:
        self._socket, self._directories = socket, directories
        self._maps: dict[tuple[int, int], mmap.mmap] = {}  # (version, inode)
        self.refused = 0
        """Number of invalid requests."""
        self.sent_bytes = 0

    async def serve_pieces(self) -> None:
        """Answer requests, for ever."""
        while True:
            parts = await self._socket.recv_multipart()
            try:
                if len(parts) != 2:
                    raise ValueError(f"{len(parts)} parts")
                ask = _ask.decode(parts[1])
            except (msgspec.DecodeError, ValueError, RecursionError):
                self.refused += 1
                continue
            view = self._view(ask.version)
            body = view[ask.offset : ask.offset + PIECE_BYTES] if view is not None else b""
            self.sent_bytes += len(body)
            head = _encode(Piece(ask.version, ask.offset, 0 if view is None else len(view)))
            await self._socket.send_multipart([parts[0], head, body], copy=False)

    def _view(self, version: int) -> memoryview | None:
        """Map a version's file; None: there is none."""
        paths = [directory / f"v{version}" / FILE for directory in self._directories]
        path = next((path for path in paths if path.is_file()), paths[0])
        try:
            with path.open("rb") as file:
                key = (version, path.stat().st_ino)
                if key not in self._maps:  # a mapping outlives the file's name
                    self._maps[key] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                    for old in sorted(self._maps)[:-_KEPT]:
                        del self._maps[old]
        except (OSError, ValueError):  # ValueError: empty
            return None
        return memoryview(self._maps[key])


def fetch_weights(
    peer_keys: PeerKeys, version: int, total: int, patience_s: float
) -> Iterator[bytes]:
    """Yield the bytes of a version's file, in order.

    Raises TransportError if nothing arrives for `patience_s`, or the wrong bytes do.
    """
    received, since, why = 0, time.monotonic(), ""
    with zmq.Context() as context:
        while received < total:
            with _PieceClient(context, peer_keys, version, received, total) as client:
                for piece in client.pieces():
                    received += len(piece)
                    since = time.monotonic()
                    yield piece
                why = client.why or why
            waited_s = time.monotonic() - since
            if received < total and waited_s > patience_s:
                raise TransportError(
                    f"version {version}: nothing arrived from {peer_keys.weights} for "
                    f"{waited_s:.0f} s, at {received} of {total} bytes{': ' if why else ''}{why}"
                )


class _PieceClient:
    """One connection that requests pieces from an offset on."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], peer_keys: PeerKeys, *place: int
    ) -> None:
        self._version, self._offset, self._total = place
        self._next = self._offset  # to be requested
        self.why = ""
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        socket_options(self._socket)
        show_peer_keys(self._socket, peer_keys)
        self._monitor = watch_handshakes(self._socket)
        self._socket.connect(peer_keys.weights)

    def __enter__(self) -> _PieceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()

    def pieces(self) -> Iterator[bytes]:
        """Yields pieces in order, until all have arrived or nothing more does.

        An attempt that is turned away is nothing: where another key is expected they never end.
        """
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        until, denied = time.monotonic() + RETRY_S, False
        while self._offset < self._total:
            while not denied and self._next < min(self._total, self._offset + AHEAD * PIECE_BYTES):
                try:
                    self._socket.send(_encode(PieceRequest(self._version, self._next)), zmq.NOBLOCK)
                    self._next += PIECE_BYTES
                except zmq.Again:  # queues have no limit; a denied socket would block for ever
                    denied = True
            ready = dict(poller.poll(int(max(0.0, until - time.monotonic()) * 1000)))
            if self._monitor in ready:
                self.why = handshake_failure(self._monitor)
            if self._socket in ready:
                yield self._received(self._socket.recv_multipart())
                until = time.monotonic() + RETRY_S
            elif time.monotonic() >= until:
                return

    def _received(self, parts: list[bytes]) -> bytes:
        with contextlib.suppress(msgspec.DecodeError, ValueError):
            head, body = _piece.decode(parts[0]), parts[-1]
            if head.total == 0:
                raise TransportError(f"version {self._version} is no longer published")
            asked = Piece(self._version, self._offset, self._total)
            if len(parts) == 2 and head == asked and body:
                self._offset += len(body)
                return body
        raise TransportError(
            f"version {self._version}: not the {self._total} bytes of its manifest, "
            f"at byte {self._offset}"
        )
