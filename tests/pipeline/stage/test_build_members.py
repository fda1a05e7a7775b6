"""Plug-ins that cannot work together, or with the data, are named before anything starts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.config.schema import Config, DataConfig, Plugin
from pipeline.plugins.registry import PluginError
from pipeline.stage import build


def config_of(**changes: Any) -> Config:
    return msgspec.structs.replace(Config(model="anywhere"), **changes)


def check(config: Config) -> None:
    plugins = build.build_plugins(config)
    build._check_group_reward(config, plugins)
    build._check_variants(config, plugins)
    build._check_solution(config, plugins)


SEELE = Plugin(name="seele", options={})


def test_a_selector_that_names_a_column_needs_it_loaded() -> None:
    check(config_of(selector=SEELE, data=DataConfig(variants=("solution",))))
    with pytest.raises(PluginError, match=r"^selector\.seele: .*'solution' names no column"):
        check(config_of(selector=SEELE))
    with pytest.raises(PluginError, match=r"^budget\.nudge: .*'hint_1' names no column"):
        check(config_of(budget=Plugin(name="nudge", options={})))


def test_a_selector_that_includes_solutions_needs_their_field() -> None:
    luffy = Plugin(name="luffy", options={})
    check(config_of(selector=luffy, data=DataConfig(solution="solution")))
    with pytest.raises(PluginError, match=r"^selector\.luffy puts .*with data\.solution"):
        check(config_of(selector=luffy))


def test_a_selector_that_decides_by_rewards_cannot_have_those_of_groups() -> None:
    majority = Plugin(name="majority", options={})
    check(config_of(reward=majority))
    data = DataConfig(variants=("solution",))
    with pytest.raises(PluginError, match=r"selector\.seele decides by rewards, and reward\.maj"):
        check(config_of(selector=SEELE, reward=majority, data=data))
