"""How long a response will be: by its engine, its prompt's earlier ones, or all that have ended."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.coordinator import length_forecast
from pipeline.coordinator.groups import Trajectory
from pipeline.coordinator.length_forecast import AT_LEAST, LengthForecast, peak_tokens


def member(id_: int = 0, held: int = 0, **changes: object) -> Trajectory:
    found = Trajectory(id=id_, group=0, member=0, max_tokens=100, **changes)  # type: ignore[arg-type]
    found.tokens = bytearray(4 * held)
    return found


def after(*lengths: int, prompt: int = 9) -> LengthForecast:
    """Responses of these lengths have ended, all of one prompt."""
    forecast = LengthForecast()
    for length in lengths:
        forecast.ended(prompt, length)
    return forecast


def test_the_peak_of_past_future_is_the_published_one():
    """Source: Past-Future scheduler; worked by hand: 20*1+4 = 24, 5*2+14 = 24, 1*3+20 = 23."""
    assert peak_tokens([(10, 5), (4, 20), (6, 1)]) == 24
    assert peak_tokens([(6, 1), (10, 5), (4, 20)]) == 24, "in any order"
    assert peak_tokens([]) == 0


def test_what_an_engine_predicts_is_believed():
    forecast = after(*[50] * AT_LEAST)
    told = member(held=10, remaining=3.0)
    assert forecast.expected(told, 9) == forecast.drawn(told) == 3.0


def test_a_prompt_is_expected_to_answer_as_it_did():
    forecast = after(40, 20)
    assert forecast.fresh(9) == 30.0, "the newest counts half"
    assert forecast.expected(member(held=10), 9) == 20.0
    assert forecast.fresh(8) == 30.0, "another prompt: the mean of all"


def test_one_that_has_passed_its_prompts_mean_is_expected_as_the_longer_ones_were():
    forecast = after(90, 60, 10, 10, 10)
    assert forecast.fresh(9) == pytest.approx(20.0, abs=3)
    assert forecast.expected(member(held=50), 9) == 25.0, "the mean of 60 and 90, less 50"
    assert forecast.expected(member(held=95), 9) == 5.0, "none was longer: what the limit leaves"


def test_nothing_is_known_before_anything_has_ended():
    forecast = LengthForecast()
    assert forecast.fresh(0) is None
    assert forecast.expected(member(held=10), 0) == forecast.drawn(member(held=10)) == 90.0


def test_draws_have_the_distribution_of_the_longer_ones():
    forecast = after(*range(1, 41))
    drawn = Counter(10 + forecast.drawn(member(id_, held=10)) for id_ in range(300))
    assert sorted(drawn) == list(range(11, 41)), "each length above 10, and no other"
    assert max(drawn.values()) - min(drawn.values()) <= 4, "as often as any other"


def test_a_few_lengths_are_no_distribution():
    forecast = after(*[5] * (AT_LEAST - 1))
    assert forecast.drawn(member()) == 100.0
    forecast.ended(9, 5)
    assert forecast.drawn(member()) == 5.0


def test_a_restored_forecast_predicts_the_same():
    forecast = after(*range(20), prompt=3)
    again = LengthForecast(forecast.state())
    assert again.state() == forecast.state()
    assert again.expected(member(held=2), 3) == forecast.expected(member(held=2), 3)


def test_the_prompts_sampled_last_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(length_forecast, "MOST_PROMPTS", 2)
    forecast = LengthForecast()
    for prompt in (0, 1, 0, 2):
        forecast.ended(prompt, 7)
    assert [prompt for prompt, _ in forecast.state().prompts] == [0, 2]
