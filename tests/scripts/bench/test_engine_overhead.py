"""The pure parts of the measurement against raw vLLM, and one run with its learner that learns
nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.bench.engine_overhead import (
    one_step_config,
    overhead_summary,
    through_the_pipeline,
)
from scripts.bench.raw_engine import Span, requests_of


def test_requests_of_a_step_are_groups_of_one_prompt_each_member_with_its_own_seed() -> None:
    config = one_step_config(24, ["group.size=8"])
    requests = requests_of(config)
    prompts = [tuple(request.tokens) for request in requests]
    assert [len(set(prompts[at : at + 8])) for at in (0, 8, 16)] == [1, 1, 1]
    assert len(set(prompts)) == 3
    assert len({request.seed for request in requests}) == len(requests) == 24
    assert {request.max_tokens for request in requests} == {config.sampling.max_tokens}


def test_another_seed_of_the_run_asks_with_other_seeds() -> None:
    one, other = (requests_of(one_step_config(8, [f"seed={seed}"])) for seed in (0, 1))
    assert not {r.seed for r in one} & {r.seed for r in other}


@pytest.mark.parametrize("requests", [0, 4, 20])
def test_a_number_of_requests_that_is_no_whole_group_is_refused(requests: int) -> None:
    with pytest.raises(ValueError, match="multiple of group.size 8"):
        one_step_config(requests)


def test_each_repetition_is_compared_with_the_raw_one_beside_it() -> None:
    raw = [Span(tokens=100, seconds=1.0), Span(tokens=100, seconds=2.0)]
    sink = [Span(tokens=90, seconds=1.0), Span(tokens=100, seconds=4.0)]
    found = overhead_summary({"raw": raw, "sink": sink})["sink"]
    assert found["ratios"] == [0.9, 0.5]
    assert found["ratio"] == pytest.approx(0.7)
    assert found["tokens_per_s"] == [90.0, 25.0]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_learner_that_learns_nothing_ends_a_run_in_which_every_token_counts_as_trained(
    tmp_path: Path,
) -> None:
    config = one_step_config(32, ["engine.kind=simulated"])
    span = through_the_pipeline(config, tmp_path / "sink", "sink")
    result = json.loads((tmp_path / "sink" / "result.json").read_text())
    assert result["steps"] == 1
    assert result["tokens"]["trained"] == result["tokens_reported_by_engines"] == span.tokens
    assert 32 <= span.tokens <= 32 * config.sampling.max_tokens
    assert span.seconds > 0
