"""PTL: the profile, the knee, and what frames say of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.hardware.latency_model import FLAT, LatencyMeter, LatencyModel

CURVE = ((1, 0.010), (32, 0.012), (64, 0.020))


@pytest.mark.parametrize(
    "running,seconds", [(0, 0.010), (1, 0.010), (32, 0.012), (48, 0.016), (64, 0.020), (96, 0.028)]
)
def test_between_points_and_beyond_the_last_it_is_a_straight_line(running: int, seconds: float):
    assert LatencyModel(CURVE).seconds(running) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "points,knee", [(CURVE, 32), (FLAT, 2), (((1, 0.01), (8, 0.02), (64, 0.05), (128, 0.2)), 64)]
)
def test_the_knee_is_where_more_sequences_hardly_sample_more_per_second(
    points: tuple[tuple[int, float], ...], knee: int
):
    assert LatencyModel(points).knee() == knee


@pytest.mark.parametrize("points", [(), ((1, 0.1),), ((2, 0.1), (1, 0.2)), ((1, 0.0), (2, 0.1))])
def test_a_profile_that_is_none_is_refused(points: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ValueError, match="two or more"):
        LatencyModel(points)


def test_frames_move_the_curve_towards_what_they_show_and_leave_the_rest() -> None:
    curve = LatencyModel(CURVE)
    for _ in range(200):
        curve.blend(64, 0.040)
    assert curve.seconds(64) == pytest.approx(0.040, rel=1e-3)
    assert curve.seconds(1) == pytest.approx(0.010)
    curve.blend(500, 9.0)
    assert curve.seconds(64) == pytest.approx(0.040, rel=1e-3), "nothing is known there"


def test_the_knee_moves_with_the_curve() -> None:
    curve = LatencyModel(CURVE)
    assert curve.knee() == 32
    for _ in range(200):
        curve.blend(64, 0.012)
    assert curve.knee() == 64


@given(st.lists(st.tuples(st.floats(1, 64), st.floats(1e-6, 1e3, exclude_min=True)), max_size=200))
def test_whatever_frames_show_the_curve_stays_one(shown: list[tuple[float, float]]) -> None:
    curve = LatencyModel(CURVE)
    for running, seconds in shown:
        curve.blend(running, seconds)
    values = [seconds for _, seconds in curve.points]
    assert values == sorted(values) and values[0] > 0
    assert 1 <= curve.knee() <= 64


def test_what_is_measured_now_holds_against_points_that_were_measured_before() -> None:
    """A profile that was made on a busy machine: full engines show what is true, and the points
    that are never visited follow."""
    curve = LatencyModel(((1, 0.0001), (8, 0.002), (16, 0.025), (32, 0.025), (64, 0.025)))
    for _ in range(60):
        curve.blend(64, 0.012)
    assert curve.seconds(64) == pytest.approx(0.012, rel=0.01)
    assert curve.seconds(32) == pytest.approx(0.012, rel=0.01)


def test_a_meter_measures_what_each_token_took_at_the_mean_load_of_the_tokens() -> None:
    meter = LatencyMeter()
    assert meter.frame(10.0, 4, 100, 2.0) is None
    running, seconds = meter.frame(11.0, 8, 300, 6.0) or (0.0, 0.0)
    assert running == pytest.approx((4 * 100 + 8 * 300) / 400)
    assert seconds == pytest.approx(8.0 / 400)
    assert meter.frame(12.0, 8, 0, 0.0) is None, "no token, no measurement"


def test_a_long_chunk_and_the_ends_between_chunks_give_the_same_latency() -> None:
    """Chunks of 256 tokens come every three seconds, and in between the ends of single responses:
    a window that has only such an end in it must not look like an engine that stands still."""
    curve = LatencyModel(((1, 0.012), (64, 0.012)))
    meter, step = LatencyMeter(), 0.012
    for chunk in range(50):
        start = chunk * 256 * step
        for end in (100, 200):  # tokens into the chunk
            found = meter.frame(start + end * step, 32, end, end * step)
            if found:
                curve.blend(*found)
        found = meter.frame(start + 256 * step, 30, 30 * 256, 30 * 256 * step)
        if found:
            curve.blend(*found)
    assert curve.seconds(32) == pytest.approx(0.012, rel=1e-6)


def test_each_window_is_measured_by_itself() -> None:
    meter = LatencyMeter()
    meter.frame(10.0, 4, 0, 0.0)
    assert meter.frame(11.0, 4, 400, 4.0) == (pytest.approx(4.0), pytest.approx(4.0 / 400))
    assert meter.frame(13.0, 2, 100, 4.0) == (pytest.approx(2.0), pytest.approx(4.0 / 100))
    assert meter.frame(14.5, 2, 0, 0.0) is None, "a window without a token says nothing"
    assert meter.frame(15.5, 2, 50, 2.0) == (pytest.approx(2.0), pytest.approx(2.0 / 50))
