"""Settings that have another name now: an old one is refused, with the new one in the message."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import docs
from pipeline.config.load import ConfigError, load
from pipeline.config.renamed import RENAMED, SECTIONS
from tests.paths import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
EXAMPLES = {
    "watch": "watch={join_s: 9}",
    "prompts": "prompts=sequential",
    "rollout": "rollout=single",
}
"""Old section -> an override of it."""


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(QUICKSTART, overrides)
    return raised.value.problems


def override_of(old: str) -> tuple[str, str]:
    """(key, override) of a row: names in place of each `*`."""
    if old.startswith("reward.sum.of"):
        option = old.rpartition(".")[2]
        return (
            f"reward.sum.of.0.exact.{option}",
            f"reward={{sum: {{of: [exact: {{{option}: 5}}]}}}}",
        )
    if old in EXAMPLES:
        return old, EXAMPLES[old]
    plugin = {"reward": "exact", "rollout": "calculator", "environment": "calculator"}
    key = old.replace("*", plugin.get(old.partition(".")[0], ""))
    return key, f"{key}=5"


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_refused_with_the_new_one(old: str):
    key, override = override_of(old)
    new = RENAMED[old]
    verb = "moved" if old.rpartition(".")[2] == new.rpartition(".")[2] else "renamed"
    assert f"override {override}: {key}: {verb} to {new}" in problems(override)


@pytest.mark.parametrize("old", RENAMED)
def test_the_new_name_is_a_setting(old: str):
    assert RENAMED[old] in {*docs.documentation(), *docs.sections()}
    assert old not in docs.documentation()


def test_all_old_names_of_a_file_come_in_one_go_and_their_values_are_checked(tmp_path: Path):
    path = tmp_path / "old.yaml"
    path.write_text(
        f"model: {ROOT / 'models/chain-sums'}\n"
        "watch: {warn_s: 0,\n"
        "  join_s: 5, timing: true}\n"
        "reward: {exact: {limit_s: 5, workers: 2}}\n"
        "prompts: {shuffled: {epochs: 1}}\n"
    )
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert raised.value.problems == [
        f"{path}:2: watch.warn_s: renamed to timeouts.log_wait_s",
        f"{path}:3: watch.timing: moved to metrics.timing",
        f"{path}:4: reward.exact.limit_s: moved to workers.limit_s",
        f"{path}:4: reward.exact.workers: renamed to workers.count",
        f"{path}:2: watch: renamed to timeouts",
        f"{path}:5: prompts: renamed to prompt_order",
        f"{path}:2: timeouts.log_wait_s: found 0, expected above 0",
    ]


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_an_empty_old_section_is_refused_too(section: str):
    assert f"override {section}={{}}: {section}: renamed to {RENAMED[section]}" in problems(
        f"{section}={{}}"
    )
