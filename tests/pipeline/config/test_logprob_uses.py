"""Who computes logprobs ahead, and for whom: one answer for stage and learner."""

from __future__ import annotations

import pytest

from pipeline.config import rules
from pipeline.config.load import load
from pipeline.config.logprob_uses import importance_mode, of
from pipeline.config.schema import Config
from pipeline.stage.build import coordinator_settings
from tests.paths import MODEL


def config_of(*overrides: str) -> Config:
    return load(None, [f"model={MODEL}", *(f"learner.{override}" for override in overrides)])


@pytest.mark.parametrize(
    "overrides, own, reference, answered",
    [
        ([], False, False, False),
        (["overlap=token"], False, False, False),
        (["overlap=token", "updates=2"], True, False, False),
        (["overlap=token", "old_logprobs=always"], True, False, False),
        (["overlap=token", "max_staleness=1"], True, False, True),
        (["overlap=group", "max_staleness=1"], False, False, False),
        (["overlap=token", "max_staleness=1", "zero=3"], False, False, False),
        (["overlap=token", "reference=start", "zero=3"], False, True, False),
    ],
)
def test_tokens_are_streamed_where_something_consumes_their_logprobs(
    overrides: list[str], own: bool, reference: bool, answered: bool
) -> None:
    config = config_of(*overrides)
    uses = of(config)
    assert (uses.own, uses.reference, uses.answered) == (own, reference, answered)
    settings = coordinator_settings(config, prompts=9, stop_tokens=frozenset({1}))
    assert settings.stream == (own or reference)
    assert settings.limits.close_s == 5.0


@pytest.mark.parametrize(
    "overrides, mode",
    [
        ([], "off"),
        (["max_staleness=1"], "truncate"),
        (["max_staleness=1", "importance=off"], "off"),
        (["importance=mask"], "mask"),
        (["importance=geometric"], "geometric"),
    ],
)
def test_stale_tokens_are_weighed_unless_told_otherwise(overrides: list[str], mode: str) -> None:
    assert importance_mode(config_of(*overrides).learner) == mode


def test_training_on_stale_tokens_uncorrected_is_warned_of() -> None:
    assert not list(rules.warnings(config_of("importance=off", "close_s=0")))
    assert not list(rules.warnings(config_of("max_staleness=1")))
    off = ["learner.max_staleness=1", "learner.importance=off", "loss=minpro"]
    own = load(None, [f"model={MODEL}", *off])
    assert not list(rules.warnings(own)), "this loss corrects by itself"
    weights, logprobs = rules.warnings(config_of("max_staleness=2", "importance=off", "close_s=0"))
    assert weights.startswith("learner.importance is off, but learner.max_staleness is 2")
    assert logprobs.startswith("learner.close_s is 0, but learner.max_staleness is 2")
