"""Compressed files that grow frame by frame, and are whole up to their last whole frame.

A file is a row of zstd frames, which `zstdcat` and every zstd library read as one. A process that
is killed while it writes leaves a frame that is cut off: it is found by its length, which the
frame's own block headers say (RFC 8878, section 3.1.1), and left out. pyarrow has the codec.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

MOST_FRAME_BYTES = 256 << 20
"""Largest frame that is read, before and after it is unpacked."""
_MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = 3
_PIECE = 1 << 20
_LAST, _RLE = 1, 1  # of a block's header: its lowest bit; the type in the next two


class DamagedFrame(ValueError):
    """Bytes that are no zstd frame; the message says where."""


def compressed(content: bytes) -> bytes:
    """One frame."""
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=_LEVEL).compress(content, asbytes=True)


def frames(file: BinaryIO) -> Iterator[bytes]:
    """Yields the whole frames from the file's beginning; the file then stands behind the last one.

    Raises DamagedFrame where something else than a frame begins.
    """
    begin = 0
    while (end := _frame_end(file, begin)) is not None:
        file.seek(begin)
        yield file.read(end - begin)
        begin = end
    file.seek(begin)


def _frame_end(file: BinaryIO, begin: int) -> int | None:
    """Where the frame at `begin` ends; None if it is cut off, or there is none."""
    file.seek(begin)
    head = file.read(5)
    if not _MAGIC.startswith(head[:4]) and head[:4] != _MAGIC:
        raise DamagedFrame(f"no zstd frame begins at byte {begin}")
    if len(head) < 5:
        return None
    flags = head[4]
    one_segment, checksum = flags >> 5 & 1, flags >> 2 & 1
    content_size = (one_segment, 2, 4, 8)[flags >> 6]
    place = begin + 5 + (1 - one_segment) + (0, 1, 2, 4)[flags & 3] + content_size
    last = False
    while not last:
        file.seek(place)
        block = file.read(3)
        if len(block) < 3:
            return None
        header = int.from_bytes(block, "little")
        last = bool(header & _LAST)
        place += 3 + (1 if header >> 1 & 3 == _RLE else header >> 3)
        if place - begin > MOST_FRAME_BYTES:
            raise DamagedFrame(f"the zstd frame at byte {begin} is too large")
    end = place + 4 * checksum
    return end if file.seek(0, io.SEEK_END) >= end else None


def unpacked(frame: bytes) -> bytes:
    """The content of one frame. Raises DamagedFrame."""
    import pyarrow

    found = bytearray()
    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(frame), "zstd") as stream:
            while piece := stream.read(_PIECE):
                found += piece
                if len(found) > MOST_FRAME_BYTES:
                    raise DamagedFrame(
                        f"a zstd frame unpacks to more than {MOST_FRAME_BYTES} bytes"
                    )
    except (OSError, pyarrow.ArrowException) as error:
        raise DamagedFrame(f"a zstd frame does not unpack: {error}") from error
    return bytes(found)
