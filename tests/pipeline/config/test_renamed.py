"""Settings that have another name now: an old one is taken as the new one, with a line of it."""

from __future__ import annotations

import contextlib
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


def told(caplog: pytest.LogCaptureFixture, *overrides: str) -> list[str]:
    """What is said of names in a configuration that may be refused otherwise."""
    with contextlib.suppress(ConfigError):
        load(QUICKSTART, overrides)
    return caplog.messages


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
def test_an_old_name_is_told_with_the_new_one(old: str, caplog: pytest.LogCaptureFixture):
    key, override = override_of(old)
    new = RENAMED[old]
    verb = "moved" if old.rpartition(".")[2] == new.rpartition(".")[2] else "renamed"
    line = f"override {override}: {key}: {verb} to {new}; it is taken as that"
    assert line in told(caplog, override)


def test_old_names_have_their_values_taken():
    config = load(
        QUICKSTART,
        [
            "watch.warn_s=7",
            "watch.join_s=90",
            "watch.trace_steps=0",
            "reward.exact.workers=3",
            "prompts.shuffled.epochs=2",
        ],
    )
    assert (config.timeouts.log_wait_s, config.timeouts.join_s) == (7, 90)
    assert (config.metrics.trace_steps, config.workers.count) == (0, 3)
    assert config.prompt_order.options["epochs"] == 2


def test_an_old_override_chooses_another_plug_in():
    assert load(QUICKSTART, ["prompts=sequential"]).prompt_order.name == "sequential"


def test_an_override_wins_over_a_file_by_whichever_name(tmp_path: Path):
    path = tmp_path / "old.yaml"
    path.write_text(f"model: {ROOT / 'models/chain-sums'}\nwatch: {{warn_s: 4}}\n")
    assert load(path).timeouts.log_wait_s == 4
    assert load(path, ["timeouts.log_wait_s=6"]).timeouts.log_wait_s == 6
    assert load(path, ["watch.warn_s=6"]).timeouts.log_wait_s == 6


def test_both_names_in_one_file_are_refused(tmp_path: Path):
    path = tmp_path / "both.yaml"
    path.write_text(
        f"model: {ROOT / 'models/chain-sums'}\nwatch: {{join_s: 4}}\ntimeouts: {{join_s: 5}}\n"
    )
    with pytest.raises(ConfigError) as raised:
        load(path)
    [line] = raised.value.problems
    assert line == (
        f"{path}:2: watch.join_s: given by its new name too, at {path}:3; leave one out"
    )


@pytest.mark.parametrize("old", RENAMED)
def test_the_new_name_is_a_setting(old: str):
    assert RENAMED[old] in {*docs.documentation(), *docs.sections()}
    assert old not in docs.documentation()


def test_values_of_old_names_are_checked_at_their_old_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
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
    assert raised.value.problems == [f"{path}:2: timeouts.log_wait_s: found 0, expected above 0"]
    assert caplog.messages == [
        f"{path}:{line}; it is taken as that"
        for line in (
            "2: watch.warn_s: renamed to timeouts.log_wait_s",
            "3: watch.timing: moved to metrics.timing",
            "4: reward.exact.limit_s: moved to workers.limit_s",
            "4: reward.exact.workers: renamed to workers.count",
            "2: watch: renamed to timeouts",
            "5: prompts: renamed to prompt_order",
        )
    ]


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_an_empty_old_section_is_told_too(section: str, caplog: pytest.LogCaptureFixture):
    line = f"override {section}={{}}: {section}: renamed to {RENAMED[section]}; it is taken as that"
    assert line in told(caplog, f"{section}={{}}")
