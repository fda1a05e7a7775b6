"""A tracker's server that is not there holds nobody up: at the start, in a run or at its end."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import Config
from pipeline.observability import tracker_thread, trackers
from pipeline.observability.prometheus import TrackerError
from pipeline.observability.tracker_thread import TrackerThread
from pipeline.observability.trackers import Trackers
from pipeline.system.run_folder import RunFolder


class Played:
    """A tracker that waits until `released`, where it is told to."""

    def __init__(self, waits: str = "") -> None:
        self.waits, self.released = waits, threading.Event()
        self.logged: list[tuple[str, int, Mapping[str, float]]] = []
        self.closed = False

    def made(self) -> Played:
        self.wait("make")
        return self

    def wait(self, where: str) -> None:
        if where == self.waits:
            assert self.released.wait(30)

    def log_metrics(self, what: str, step: int, numbers: Mapping[str, float]) -> None:
        self.wait("log")
        self.logged.append((what, step, numbers))

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.logged.append(("rollouts", step, {"rows": len(rows)}))

    def close(self) -> None:
        self.wait("close")
        self.closed = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_thread, "CONNECT_S", 0.1)
    monkeypatch.setattr(tracker_thread, "CLOSE_S", 0.1)


@pytest.mark.fault("a tracker's server does not answer", part="stage", by="direct")
@pytest.mark.parametrize(
    "waits, told", [("make", "has not answered"), ("log", "has not taken everything"),
                        ("close", "has not taken everything")]
)  # fmt: skip
def test_a_server_that_is_not_there_is_told_of_and_left(waits: str, told: str) -> None:
    """Promise: at its start, in it and at its end the run goes on, and the setting is named.
    Bound: 5 s each at the start and at the end (here 0.1 s).
    """
    played = Played(waits)
    every = Trackers([TrackerThread("metrics.played", played.made)])
    every.log_metrics("step", 1, {"reward": 0.5})
    every.close()
    assert any(line.startswith(f"metrics.played: {told}") for line in every.news())
    played.released.set()


def test_figures_wait_for_a_server_that_comes_late() -> None:
    played = Played("make")
    tracker = TrackerThread("metrics.played", played.made)
    tracker.log_metrics("step", 1, {"reward": 0.5})
    played.released.set()
    tracker.log_metrics("step", 2, {"reward": 0.75})
    tracker_thread.CLOSE_S = 30.0
    tracker.close()
    assert [step for _, step, _ in played.logged] == [1, 2]
    assert played.closed


def test_a_queue_that_is_full_loses_figures_and_counts_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracker_thread, "MOST_QUEUED", 2)
    played = Played("make")
    tracker = TrackerThread("metrics.played", played.made)
    for step in range(5):
        tracker.log_metrics("step", step, {})
    tracker.close()
    assert "metrics.played: was too slow: 3 steps and evaluations were left out" in tracker.news()
    played.released.set()


@pytest.mark.parametrize("error", [TrackerError("metrics.played: log in"), SystemExit(3)])
def test_a_refusal_at_once_keeps_the_run_from_starting(error: BaseException) -> None:
    def refuse() -> Played:
        raise error

    with pytest.raises(TrackerError, match=r"metrics\.played: "):
        TrackerThread("metrics.played", refuse)


def test_a_tracker_that_takes_nothing_in_a_run_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracker_thread, "STUCK_S", 0.0)
    played = Played("log")
    tracker = TrackerThread("metrics.played", played.made)
    tracker.log_metrics("step", 1, {})
    while not (told := tracker.news()):  # its thread takes the first step
        time.sleep(0.01)
    assert told == ["metrics.played: has taken nothing for 0 s; the run goes on, its figures wait"]
    assert tracker.news() == []
    played.released.set()


@pytest.mark.fault("no room for TensorBoard's files", part="disk", by="direct")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_without_room_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: the thread of its library that writes dies, and its queue takes no more: the run
    goes on without its curves, and says so.
    Bound: no step waits; 5 s at the end (here 0.1 s).
    """
    monkeypatch.setattr(tracker_thread, "CONNECT_S", 30.0)
    # At the end of the process it would wait for its thread that died; a stage does not ask it.
    monkeypatch.setattr("tensorboardX.writer.atexit.register", lambda _: None)
    run = RunFolder(tmp_path / "run")
    run.make_folders()
    [board] = trackers.start_trackers(Config(model=str(tmp_path)), run)

    def full(self: object, event: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.write_event", full)
    every = Trackers([board])
    for step in range(50):
        every.log_metrics("step", step, {"reward": 0.5})
    every.close()
    assert any(line.startswith("metrics.tensorboard: has not taken") for line in every.news())


def test_tensorboard_that_cannot_begin_is_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.make_folders()
    run.tensorboard.write_text("in the way")
    every = Trackers(trackers.start_trackers(Config(model=str(tmp_path)), run))
    every.log_metrics("step", 1, {"reward": 0.5})
    assert any(line.startswith("metrics.tensorboard: is left out") for line in every.news())
