"""Files of responses: whole lines after a kill, bounded by size, none twice after a resume."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from pipeline.observability.rollout_files import (
    RolloutFiles,
    RolloutLine,
    file_of,
    files_in,
    forget_after,
    read_lines,
    read_rollouts,
)
from pipeline.system.untrusted_files import UnreadableFile
from pipeline.system.zstd_frames import compressed

GIB = 1 << 30


def line(step: int, number: int, text: str = "#5") -> bytes:
    made = RolloutLine(step=step, group=number // 4, prompt=3, id=number, fate="trained",
                       pieces=((text, True),))  # fmt: skip
    return msgspec.json.encode(made) + b"\n"


def ids(folder: Path) -> dict[int, list[int]]:
    return {step: [r.id for r in read_rollouts(path)] for step, path in files_in(folder).items()}


def test_a_step_s_file_has_its_number_in_the_terminal_and_its_lines_in_order(
    tmp_path: Path,
) -> None:
    files = RolloutFiles(tmp_path, GIB)
    assert files.append(0, line(0, 1) + line(0, 2))
    assert files.append(0, line(0, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001.jsonl.zst"]
    assert ids(tmp_path) == {0: [1, 2, 3]}
    assert next(read_rollouts(file_of(tmp_path, 0))).response == "#5"


@pytest.mark.fault("a run is killed while it writes responses", part="disk", by="file")
def test_a_file_that_was_cut_off_is_read_up_to_its_last_whole_frame_and_continued_there(
    tmp_path: Path,
) -> None:
    """Promise: lines before the kill stay; what is written after it is read, too.
    Bound: the lines of one second.
    """
    RolloutFiles(tmp_path, GIB).append(4, line(4, 1))
    path = file_of(tmp_path, 4)
    path.write_bytes(path.read_bytes() + compressed(line(4, 2))[:-3])
    assert ids(tmp_path) == {4: [1]}
    RolloutFiles(tmp_path, GIB).append(4, line(4, 3))
    assert ids(tmp_path) == {4: [1, 3]}


def test_the_oldest_steps_make_room_for_new_ones(tmp_path: Path) -> None:
    size = len(compressed(line(0, 1)))
    files = RolloutFiles(tmp_path, 3 * size)
    for step in range(6):
        assert files.append(step, line(step, 1))
    assert [*files_in(tmp_path)] == [3, 4, 5]
    assert [*files_in(tmp_path)] == [3, 4, 5], "also of the run before a resume"
    assert RolloutFiles(tmp_path, 3 * size).append(6, line(6, 1))
    assert [*files_in(tmp_path)] == [4, 5, 6]


def test_a_step_that_is_larger_than_all_files_may_be_is_cut_at_whole_lines(
    tmp_path: Path,
) -> None:
    files = RolloutFiles(tmp_path, 2 * len(compressed(line(0, 1))))
    assert [files.append(0, line(0, n)) for n in (1, 2, 3)] == [True, True, False]
    assert ids(tmp_path) == {0: [1, 2]}


@pytest.mark.fault("rollouts have responses from after the checkpoint", part="disk", by="file")
def test_a_resume_forgets_what_ended_after_its_checkpoint(tmp_path: Path) -> None:
    """Promise: a response that ends again after a resume is there once.
    Bound: at the resume.
    """
    files = RolloutFiles(tmp_path, GIB)
    for step, number in ((0, 1), (1, 2), (1, 3), (1, 9), (2, 4)):
        files.append(step, line(step, number))
    forget_after(tmp_path, step=1, next_id=9, live={3})
    assert ids(tmp_path) == {0: [1], 1: [2]}, "3 was alive, 9 had not begun, step 2 is done again"
    RolloutFiles(tmp_path, GIB).append(1, line(1, 3))
    assert ids(tmp_path) == {0: [1], 1: [2, 3]}


@contextmanager
def files_of(most_bytes: int) -> Iterator[None]:
    """No file may become longer, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.fault("the disk is full while responses are written", part="disk", by="file")
def test_a_full_disk_is_said_and_leaves_no_half_frame(tmp_path: Path) -> None:
    """Promise: the run goes on; the lines of that time are left out.
    Bound: at that write.
    """
    files = RolloutFiles(tmp_path, GIB)
    assert files.append(0, line(0, 1))
    with files_of(file_of(tmp_path, 0).stat().st_size + 9), pytest.raises(OSError):
        files.append(0, line(0, 2))
    assert files.append(0, line(0, 3))
    assert ids(tmp_path) == {0: [1, 3]}


def test_what_cannot_be_read_is_named_with_its_place(tmp_path: Path) -> None:
    path = file_of(tmp_path, 0)
    with pytest.raises(UnreadableFile, match="no such file"):
        list(read_lines(path))
    path.write_bytes(b"plain text")
    with pytest.raises(UnreadableFile, match="no zstd frame begins at byte 0"):
        list(read_lines(path))
    path.write_bytes(compressed(b'{"step": "one"}\n'))
    with pytest.raises(UnreadableFile, match="line 1: not a rollout"):
        list(read_rollouts(path))
