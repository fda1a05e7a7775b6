"""The format of a recording: what the coordinator was built from, then entry after entry.

    file   = MAGIC, format (one byte), block of the header, blocks of entries
    block  = length and CRC-32 of what follows (two little-endian uint32), msgpack

An entry is one call of `Coordinator.handle`: the time, the event as it is, and the commands with
every long run of bytes replaced by its checksum. So two runs can be compared bit for bit, and no
token is stored twice. Nothing is compressed: random tokens shrink by a fifth, for which zlib took
75 us a frame, and all else takes 6. Events and commands are decoded by the unions of
`pipeline.coordinator.events`: a new event or field is recorded without a change here.
Reading believes nothing: sizes are limited, types are checked, nothing is executed. Pure.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec
import xxhash

from pipeline.config.setting_types import Plugin
from pipeline.coordinator.events import AnyCommand, AnyEvent
from pipeline.coordinator.snapshot import Snapshot
from pipeline.coordinator.state import Settings

MAGIC = b"darts recording\n"
FORMAT = 1
MAX_BLOCK_BYTES = 1 << 30
"""Of one block; a frame of an engine is 32 MiB at most."""
_LONG = 32  # bytes; a checksum is 16
_HEAD = struct.Struct("<II")
HEAD_BYTES = _HEAD.size


class RecordingError(Exception):
    """The file is no recording, or not one that this darts reads; names file and offset."""


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that the coordinator was built from; seeds are in `settings`."""

    darts: str  # version of the package that wrote it
    incarnation: int  # of the stage: a resumed run writes another recording
    config: dict[str, Any]  # section -> key -> value, for people and for a simulation
    settings: Settings
    plugins: dict[str, Plugin]  # kind -> name and options, of those that decide in the stage
    prompt_tokens: list[int]
    tags: list[str]
    variants: dict[str, list[int]] = {}  # column -> its tokens, for each prompt
    solutions: list[bytes] = []  # int32, the data's response to each prompt, where it is read
    snapshot: bytes = b""  # msgpack of what a resume restored; b"": the run began here
    restored_at: float = 0.0  # by the clock of the entries
    restored: tuple[bytes, ...] = ()  # commands that the restore gave, as in an entry


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One event, and what the coordinator answered."""

    now: float
    event: AnyEvent
    commands: tuple[bytes, ...]  # each as `command_bytes` gives it
    fault: str = ""  # what was raised in place of an answer


_encoder = msgspec.msgpack.Encoder(order="deterministic")  # of sets and mappings: not by hash
_header = msgspec.msgpack.Decoder(Header)
_entries = msgspec.msgpack.Decoder(list[Entry])
_snapshot = msgspec.msgpack.Decoder(Snapshot)


def encode_value(value: object) -> bytes:
    """Encode a header, an entry or a snapshot as msgpack."""
    return _encoder.encode(value)


def command_bytes(command: AnyCommand) -> bytes:
    """Encode a command; bytes longer than 32 are replaced by their xxh3-128.

    Raises: TypeError, ValueError or OverflowError if a plug-in's value in it is none of msgpack.
    """
    return _encoder.encode(_shortened(command))


def command_fields(recorded: bytes) -> dict[str, Any]:
    """The fields of a recorded command; its class is under `type`. Raises msgspec.DecodeError."""
    return msgspec.msgpack.decode(recorded, type=dict[str, Any])


def _shortened(value: Any) -> Any:
    """The same value, or one with the long bytes in its fields replaced."""
    if isinstance(value, bytes):
        return value if len(value) <= _LONG else xxhash.xxh3_128_digest(value)
    if isinstance(value, msgspec.Struct):
        changed = {
            name: new
            for name in value.__struct_fields__
            if (new := _shortened(old := getattr(value, name))) is not old
        }
        return msgspec.structs.replace(value, **changed) if changed else value
    if isinstance(value, tuple):
        old = cast(tuple[Any, ...], value)
        new = tuple(_shortened(part) for part in old)
        return old if all(a is b for a, b in zip(new, old, strict=True)) else new
    return value


# --- blocks ---------------------------------------------------------------------------------


def block_of(payload: bytes) -> bytes:
    """Pack msgpack as a block. Raises OverflowError if no reader would take it."""
    if len(payload) > MAX_BLOCK_BYTES:
        raise OverflowError(f"a block of {len(payload)} bytes, the limit is {MAX_BLOCK_BYTES}")
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def entries_payload(entries: Sequence[bytes]) -> bytes:
    """msgpack of a list of entries that are encoded already."""
    return b"\xdd" + len(entries).to_bytes(4, "big") + b"".join(entries)


def block_head(head: bytes) -> tuple[int, int]:
    """(length, checksum) of the block that follows. Raises ValueError if it is too long."""
    length, checksum = _HEAD.unpack(head)
    if length > MAX_BLOCK_BYTES:
        raise ValueError(f"a block of {length} bytes, the limit is {MAX_BLOCK_BYTES}")
    return length, checksum


def check_block(payload: bytes, checksum: int) -> None:
    """Raises ValueError if these are not the bytes that were written."""
    if zlib.crc32(payload) != checksum:
        raise ValueError("its checksum does not match")


def decode_header(payload: bytes) -> Header:
    """Raises ValueError."""
    return _decoded(_header, payload)


def decode_entries(payload: bytes) -> list[Entry]:
    """Raises ValueError."""
    return _decoded(_entries, payload)


def decode_snapshot(payload: bytes) -> Snapshot:
    """A fresh copy of what a resume restored. Raises ValueError."""
    return _decoded(_snapshot, payload)


def _decoded(decoder: msgspec.msgpack.Decoder[Any], payload: bytes) -> Any:
    try:
        return decoder.decode(payload)
    # deep nesting raises RecursionError, text that is not UTF-8 UnicodeDecodeError
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"it does not decode: {error}") from error


def entry_bytes(
    now: float, event: AnyEvent, commands: Iterable[AnyCommand], fault: str = ""
) -> bytes:
    """One entry, encoded. Raises as `command_bytes` does."""
    return _encoder.encode(
        Entry(now, event, tuple(command_bytes(command) for command in commands), fault)
    )
