"""What shows a run neither ends it nor holds it up: text on a path of its own."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.monitor.bounded_output import MOST_BYTES, BoundedOutput, bounded_output


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            pass


def test_text_comes_out_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    out = BoundedOutput(writer, "utf-8")
    for number in range(100):
        print(f"line {number} é", file=out)
    out.close_within()
    assert os.read(reader, 1 << 16).decode() == "".join(f"line {n} é\n" for n in range(100))


def test_a_character_that_the_terminal_has_not_is_spelled_out(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    out = BoundedOutput(writer, "latin-1")
    out.write("é \u2192\n")
    out.close_within()
    assert os.read(reader, 100) == b"\xe9 \\u2192\n"


@pytest.mark.fault("nobody reads what a run shows", part="people", by="file")
def test_a_reader_that_stands_still_holds_nobody_up_and_text_is_counted(
    pipe: tuple[int, int], tmp_path: Path
) -> None:
    """Promise: text waits up to 1 MiB, then it is left out and counted; the loss is told once, in
    logs/launcher.log; the end waits for a limited time. Bound: 2 s at the end.
    """
    reader, writer = pipe
    out = BoundedOutput(writer, "utf-8")
    told = tmp_path / "launcher.log"
    out.tell_losses_in(told)
    line = "x" * 999 + "\n"
    for _ in range(2 * MOST_BYTES // len(line)):
        out.write(line)  # a write that waited would never return
    assert told.read_text().count("\n") == 1
    assert "nobody reads it; the run goes on" in told.read_text()
    got = bytearray()

    def read() -> None:
        while b"missing here" not in got:
            got.extend(os.read(reader, 1 << 16))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "the count comes once there is room"
    assert len(got) <= MOST_BYTES + (256 << 10), "that, and what the pipe holds"


@pytest.mark.fault("the reader of what a run shows leaves, or its disk is full", part="people",
                   by="file")  # fmt: skip
@pytest.mark.parametrize("how", ["left", "full", "closed"])
def test_output_that_fails_raises_nothing(pipe: tuple[int, int], tmp_path: Path, how: str) -> None:
    """Promise: nothing is raised, and nothing waits; it is told once, in logs/launcher.log.
    Bound: at that write.
    """
    reader, writer = pipe
    if how == "left":
        os.close(reader)
    elif how == "closed":
        os.close(writer)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    out = BoundedOutput(writer, "utf-8")
    for _ in range(50):
        out.write("text\n")
        out.flush()
    out.tell_losses_in(tmp_path / "launcher.log")
    deadline = time.monotonic() + 10
    while not (tmp_path / "launcher.log").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    out.close_within(0.1)
    assert (tmp_path / "launcher.log").read_text().count("is lost") == 1


def test_streams_of_somebody_else_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout
    with bounded_output():
        assert sys.stdout is before  # pytest's own
    monkeypatch.setattr(sys, "stdout", None)  # as after `>&-`
    with bounded_output():
        print("nobody sees this")
    assert sys.stdout is None
