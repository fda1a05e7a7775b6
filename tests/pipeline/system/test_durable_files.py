"""Disks that cannot do everything: what they lack is told with its place, or gone without."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from pipeline.system.durable_files import System, naming, write_file
from pipeline.system.run_folder import RunFolder


def answer(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every fsync fail so."""

    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.fault("a file system that cannot fsync", part="disk", by="file")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_disk_that_cannot_fsync_is_gone_along_with_and_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Promise: directories (CIFS, FUSE) and files alike: the run goes on, and one line for each
    says what a loss of power may cost.
    Bound: at that write.
    """
    answer(number, monkeypatch)
    (tmp_path / "file").write_text("x")
    disk = System()
    with caplog.at_level(logging.WARNING):
        for path in (tmp_path, tmp_path / "file", tmp_path, tmp_path / "file"):
            disk.fsync(path)
    assert [text.split("cannot fsync ")[1].split(" (")[0] for text in caplog.messages] == [
        "a directory",
        "a file",
    ]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_is_an_error_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    answer(number, monkeypatch)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(OSError, match=f"{os.strerror(number)}: '{tmp_path}"):
        run.make_folders()
    with pytest.raises(OSError, match=f"{os.strerror(number)}: '.*incarnation.tmp'"):
        run.next_incarnation()


def test_an_error_of_a_write_names_the_file(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '{full}'"):
        write_file(full, "text")
    with pytest.raises(FileNotFoundError, match="'elsewhere'"), naming(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "No such file", "elsewhere")
    with pytest.raises(OSError, match="without a number"), naming(tmp_path):
        raise OSError("without a number")
