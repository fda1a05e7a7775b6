"""A recording on disk: whole or cut off, believed in nothing, and no run's end."""

from __future__ import annotations

import os
import random
import typing
from pathlib import Path

import msgspec
import pytest

from pipeline.coordinator import events
from pipeline.coordinator.events import AnyEvent, Tick, Tokens
from pipeline.recording import frames
from pipeline.recording.frames import (
    FORMAT,
    HEAD_BYTES,
    MAGIC,
    RecordingError,
    block_of,
    command_bytes,
    command_fields,
    encode_value,
)
from pipeline.recording.reader import Recording
from pipeline.wire.messages import ChunkHead
from tests.pipeline.recording.recorded_world import RecordedWorld


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "recordings" / "stage-0001.darts"
    RecordedWorld(7, path).play()
    return path


def blocks(path: Path) -> list[tuple[int, int]]:
    """(begin, end) of each block of a file, the header's first."""
    content, begin = path.read_bytes(), len(MAGIC) + 1
    found: list[tuple[int, int]] = []
    while begin < len(content):
        length, _ = frames.block_head(content[begin : begin + HEAD_BYTES])
        found.append((begin, begin + HEAD_BYTES + length))
        begin = found[-1][1]
    return found


def test_everything_comes_back_in_order_and_only_its_owner_may_read_it(whole: Path):
    recording = Recording(whole)
    entries = list(recording.entries())
    assert len(entries) > 100
    assert recording.end == ""
    assert any(isinstance(entry.event, Tokens) and entry.event.tokens for entry in entries)
    assert whole.stat().st_mode & 0o777 == 0o600
    assert whole.parent.stat().st_mode & 0o777 == 0o700
    assert list(recording.entries()) == entries, "it may be read again"


def test_every_event_that_the_coordinator_knows_can_be_recorded():
    known = set(typing.get_args(AnyEvent))
    assert known == set(events.Event.__subclasses__())
    assert set(typing.get_args(events.AnyCommand)) == set(events.Command.__subclasses__())


def test_long_bytes_of_a_command_are_a_checksum_and_short_ones_are_kept():
    command = events.RequestReward(
        kind="train", prompt=1, group=2, trajectory=3, tokens=bytes(4000), finish="stop"
    )
    found = command_fields(command_bytes(command))
    assert len(found["tokens"]) == 16
    other = msgspec.structs.replace(command, tokens=bytes(3996) + b"\x00\x00\x00\x01")
    assert command_fields(command_bytes(other))["tokens"] != found["tokens"]
    short = msgspec.structs.replace(command, tokens=b"1234")
    assert command_fields(command_bytes(short))["tokens"] == b"1234"


def test_a_file_that_is_cut_off_is_read_as_far_as_it_is_whole(whole: Path, tmp_path: Path):
    content, ends = whole.read_bytes(), blocks(whole)
    entries = list(Recording(whole).entries())
    cut = tmp_path / "cut.darts"
    begin, end = ends[-1]
    before: list[frames.Entry] | None = None
    for size in {begin + 1, begin + HEAD_BYTES, begin + HEAD_BYTES + 1, end - 1}:
        cut.write_bytes(content[:size])
        recording = Recording(cut)
        found = list(recording.entries())
        assert recording.end == f"cut off in the block that begins at byte {begin}"
        assert found == entries[: len(found)]
        assert before is None or found == before
        before = found
    cut.write_bytes(content[:begin])
    assert list(Recording(cut).entries()) == before, "cut between two blocks: nothing is missing"
    cut.write_bytes(content[: ends[0][1] - 1])
    with pytest.raises(RecordingError, match="cut off in the block .*; it holds no header"):
        Recording(cut)


def read_all(path: Path) -> int:
    return len(list(Recording(path).entries()))


def complaint_about(path: Path) -> str:
    """Why it cannot be read, or not to its end; any other exception is raised."""
    try:
        recording = Recording(path)
        for _ in recording.entries():
            pass
    except RecordingError as error:
        return str(error)
    return recording.end


def test_a_changed_byte_is_refused_with_its_place_whatever_it_is(whole: Path, tmp_path: Path):
    content, changed = bytearray(whole.read_bytes()), tmp_path / "changed.darts"
    rng = random.Random(3)
    for _ in range(150):
        place = rng.randrange(len(content))
        hostile = bytearray(content)
        hostile[place] ^= 1 << rng.randrange(8)
        changed.write_bytes(hostile)
        assert complaint_about(changed).startswith((f"{changed}:", "cut off in the block that"))


HEADER = (
    (b"", "0: this is no recording"),
    (b"\x7fELF" * 100, "0: this is no recording"),
    (MAGIC, f"{len(MAGIC)}: a recording of format nothing, this darts reads {FORMAT}"),
    (MAGIC + b"\x63", f"{len(MAGIC)}: a recording of format 99, this darts reads {FORMAT}"),
    (MAGIC + bytes([FORMAT]), "holds no header"),
    (
        MAGIC + bytes([FORMAT]) + b"\xff" * 8,
        "17: a block: a block of 4294967295 bytes, the limit is 1073741824",
    ),
    (MAGIC + bytes([FORMAT]) + block_of(encode_value({"a": 1})), "17: the header: it does not dec"),
    (MAGIC + bytes([FORMAT]) + block_of(b"\x91" * 100_000), "17: the header: it does not decode"),
)


@pytest.mark.parametrize("content, why", HEADER)
def test_what_is_no_recording_is_refused_with_file_and_offset(
    content: bytes, why: str, tmp_path: Path
):
    path = tmp_path / "bad.darts"
    path.write_bytes(content)
    with pytest.raises(RecordingError) as refused:
        Recording(path)
    assert why in str(refused.value)


def test_a_block_whose_bytes_are_not_those_written_is_refused(whole: Path, tmp_path: Path):
    first = blocks(whole)[0][1]
    content = bytearray(whole.read_bytes())
    content[first + HEAD_BYTES] ^= 1
    path = tmp_path / "changed.darts"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=f":{first}: a block: its checksum does not match"):
        read_all(path)


@pytest.mark.parametrize(
    "payload", [b"", b"\xdd\xff\xff\xff\xff", encode_value([[0.0, {"type": "Evil"}, []]])]
)
def test_entries_that_are_none_are_refused_with_their_place(
    payload: bytes, whole: Path, tmp_path: Path
):
    first = blocks(whole)[0][1]
    path = tmp_path / "entries.darts"
    path.write_bytes(whole.read_bytes()[:first] + block_of(payload))
    with pytest.raises(RecordingError, match=f":{first}: a block of entries: it does not decode"):
        read_all(path)


def test_a_full_disk_ends_the_recording_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "stage-0001.darts"
    world = RecordedWorld(3, path)
    write, room = os.write, [4000]

    def full(descriptor: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        part = data[: room[0]]
        room[0] -= len(part)
        return write(descriptor, part)

    monkeypatch.setattr(os, "write", full)
    world.start()
    world.run()
    world.writer.close()
    [said] = world.said
    assert said.startswith(f"{path}: the recording ends here, the run goes on: ")
    assert "No space left on device" in said
    monkeypatch.undo()
    recording = Recording(path)
    assert list(recording.entries())
    assert "cut off" in recording.end


def test_a_value_that_msgpack_cannot_hold_ends_the_recording_and_not_the_run(tmp_path: Path):
    world = RecordedWorld(3, tmp_path / "stage-0001.darts")
    answer = events.TurnAnswered(trajectory=1, turn=0, over=True, memory={"n": 1 << 70})
    world.writer.record(0.0, answer, ())
    world.writer.record(0.0, Tick(), ())
    [said] = world.said
    assert "the recording ends here, the run goes on" in said
    assert read_all(tmp_path / "stage-0001.darts") == 0


def test_a_tick_brings_everything_to_the_disk(tmp_path: Path):
    path = tmp_path / "stage-0001.darts"
    world = RecordedWorld(3, path)
    frame = Tokens(
        engine="e0", epoch=0, sequence=0, sampled=1, chunks=(ChunkHead(1, 0, 0, 1, 0, ""),),
        tokens=bytes(4), logprobs=bytes(4),
    )  # fmt: skip
    world.writer.record(0.0, frame, ())
    assert read_all(path) == 0
    world.writer.record(0.0, Tick(), ())
    assert read_all(path) == 2
