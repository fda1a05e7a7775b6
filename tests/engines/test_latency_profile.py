"""The engine's latency profile: measured once, then read."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from engines import latency_profile
from engines.backends.simulated import SimulatedEngine
from engines.base import Delta, Sampling
from pipeline.config.schema import EngineConfig


class Counting(SimulatedEngine):
    """Fixed lengths, and how many requests came."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots=slots, vocabulary=24, mean_tokens=4000, sigma=0.01, step_s=0.001)
        self.asked: list[int] = []

    async def generate(self, sampling: Sampling) -> AsyncIterator[Delta]:
        assert sampling.ignore_stop
        self.asked.append(sampling.max_tokens)
        async for delta in super().generate(sampling):
            yield delta


@pytest.mark.parametrize("slots,counts", [(1, [1, 2]), (4, [1, 2, 4]), (32, [1, 4, 8, 16, 32])])
async def test_a_profile_goes_from_one_sequence_to_all_slots(slots: int, counts: list[int]) -> None:
    engine = Counting(slots)
    points, _ = await latency_profile.measure_latency(engine, await engine.start())
    assert [running for running, _ in points] == counts
    assert all(0.0005 < seconds < 0.01 for _, seconds in points), points
    assert set(engine.asked) == {latency_profile.SHORT, latency_profile.LONG}


async def test_it_is_measured_once_and_again_for_other_settings_or_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency_profile, "_STEADY", math.inf)
    engine, section = Counting(2), EngineConfig()
    info = await engine.start()
    first = await latency_profile.cached_latency(engine, info, "models/chain-sums", section)
    asked = len(engine.asked)
    assert await latency_profile.cached_latency(engine, info, "models/chain-sums", section) == first
    assert len(engine.asked) == asked
    other = msgspec.structs.replace(section, dtype="bfloat16")
    await latency_profile.cached_latency(engine, info, "models/chain-sums", other)
    assert len(engine.asked) == 2 * asked
    for file in (tmp_path / "darts" / "latency").iterdir():
        file.write_bytes(b"[[1,")
    await latency_profile.cached_latency(engine, info, "models/chain-sums", section)
    assert len(engine.asked) == 3 * asked


@pytest.mark.parametrize(
    "times,seconds",
    [
        # short, short, long, long: the fastest of each count
        ((0.5, 0.1, 0.74, 2.0), 0.02),
        # what is subtracted took longer than what it is subtracted from
        ((0.5, 0.6, 0.4, 0.41), 0.01),
    ],
)
async def test_a_profile_of_a_busy_machine_is_no_nonsense_and_not_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    times: tuple[float, ...],
    seconds: float,
) -> None:
    """A profile of 0.05 ms a token, measured beside a compiler, was read by every run after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency_profile, "time_batch", batches := Batches(times))
    engine = Counting(1)
    info = await engine.start()
    points = await latency_profile.cached_latency(engine, info, "m", EngineConfig())
    assert points == ((1, pytest.approx(seconds)), (2, pytest.approx(seconds)))
    assert "not kept" in capsys.readouterr().err
    asked = batches.asked
    await latency_profile.cached_latency(engine, info, "m", EngineConfig())
    assert batches.asked == 2 * asked


class Batches:
    """Stands for `time_batch`: these times for each count, after the first call."""

    def __init__(self, times: tuple[float, ...]) -> None:
        self._times, self.asked = times, 0

    async def __call__(self, *_: object) -> float:
        number = (self.asked % (1 + 2 * len(self._times))) - 1
        self.asked += 1
        return 1.0 if number < 0 else self._times[number % len(self._times)]


@pytest.mark.fault("the engine's profile cannot be kept", part="disk", by="file")
async def test_a_profile_that_cannot_be_kept_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise: it is used all the same, and said to be not kept.
    Bound: at that write.
    """
    (tmp_path / "darts").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine = Counting(2)
    points = await latency_profile.cached_latency(engine, await engine.start(), "m", EngineConfig())
    assert [running for running, _ in points] == [1, 2]
    assert "could not cache" in capsys.readouterr().err
