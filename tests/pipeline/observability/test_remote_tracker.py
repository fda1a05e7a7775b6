"""A tracker's server that is not there holds nobody up: at the start, in a run or at its end."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from pipeline.observability import remote_tracker
from pipeline.observability.prometheus import TrackerError
from pipeline.observability.remote_tracker import RemoteTracker
from pipeline.observability.trackers import Trackers


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

    def close(self) -> None:
        self.wait("close")
        self.closed = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_tracker, "CONNECT_S", 0.1)
    monkeypatch.setattr(remote_tracker, "CLOSE_S", 0.1)


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
    every = Trackers([RemoteTracker("metrics.played", played.made)])
    every.log_metrics("step", 1, {"reward": 0.5})
    every.close()
    assert any(line.startswith(f"metrics.played: {told}") for line in every.news())
    played.released.set()


def test_figures_wait_for_a_server_that_comes_late() -> None:
    played = Played("make")
    tracker = RemoteTracker("metrics.played", played.made)
    tracker.log_metrics("step", 1, {"reward": 0.5})
    played.released.set()
    tracker.log_metrics("step", 2, {"reward": 0.75})
    remote_tracker.CLOSE_S = 30.0
    tracker.close()
    assert [step for _, step, _ in played.logged] == [1, 2]
    assert played.closed


def test_a_queue_that_is_full_loses_figures_and_counts_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_tracker, "MOST_QUEUED", 2)
    played = Played("make")
    tracker = RemoteTracker("metrics.played", played.made)
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
        RemoteTracker("metrics.played", refuse)
