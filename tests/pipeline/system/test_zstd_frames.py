"""Frames of a file that grows: whole ones are read, a cut one is left out, others are refused."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.system import zstd_frames
from pipeline.system.zstd_frames import DamagedFrame, compressed, frames, unpacked

CONTENTS = [b'{"a": 1}\n' * 1000, b"", os.urandom(300_000), bytes(500_000), b"last\n"]


def test_what_was_compressed_frame_by_frame_is_read_frame_by_frame() -> None:
    file = io.BytesIO(b"".join(map(compressed, CONTENTS)))
    assert [unpacked(frame) for frame in frames(file)] == CONTENTS


def test_a_frame_that_is_cut_off_anywhere_is_left_out() -> None:
    first, second = compressed(b"one\n" * 50), compressed(b"two\n" * 50)
    for held in range(len(second)):
        file = io.BytesIO(first + second[:held])
        assert list(frames(file)) == [first]
        assert file.tell() == len(first), "where the next frame is to be written"


def test_what_is_no_frame_is_refused_with_its_place() -> None:
    first = compressed(b"one\n")
    with pytest.raises(DamagedFrame, match=f"begins at byte {len(first)}"):
        list(frames(io.BytesIO(first + b"plain text")))


def test_a_frame_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = compressed(bytes(8 << 20))
    monkeypatch.setattr(zstd_frames, "MOST_FRAME_BYTES", 1 << 20)
    with pytest.raises(DamagedFrame, match="unpacks to more than"):
        unpacked(frame)


def test_a_frame_that_does_not_unpack_is_refused() -> None:
    frame = bytearray(compressed("".join(f"{n * n}\n" for n in range(999)).encode()))
    frame[20:60] = bytes(range(255, 215, -1))
    with pytest.raises(DamagedFrame, match="does not unpack"):
        unpacked(bytes(frame))


@pytest.mark.skipif(shutil.which("zstdcat") is None, reason="no zstdcat here")
def test_zstdcat_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.zst"
    path.write_bytes(b"".join(map(compressed, CONTENTS)))
    shown = subprocess.run(["zstdcat", path], capture_output=True, check=True)
    assert shown.stdout == b"".join(CONTENTS)
