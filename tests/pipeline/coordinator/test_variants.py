"""Members with something behind their prompt: named, refused, sent and recorded as such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import (
    CloseVersion,
    Generate,
    Report,
    RequestReward,
    StreamTokens,
    TrainGroup,
)
from pipeline.coordinator.state import PluginFault
from pipeline.plugins.actions import Allocation, Finalize, Sample
from pipeline.plugins.advantages.grpo import Grpo, GrpoOptions
from pipeline.plugins.views import BudgetView, OpenView, PromptView
from tests.pipeline.coordinator.bench import Bench, Scripted, only


class Given:
    """Budget: three candidates, of these variants."""

    def __init__(self, *variants: tuple[int, str]) -> None:
        self.variants_given = variants

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        one = Allocation(candidates=3, max_tokens=24, variants=self.variants_given)
        return [one for _ in prompts]

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        return []


def begun(*variants: tuple[int, str], **changes: Any) -> Bench:
    """Group 0 with members 0, 1, 2 of these variants; `hint` has 7 tokens for every prompt."""
    bench = Bench(
        Scripted(reward=True),
        plugins={"budget": Given(*variants)},
        variants={"hint": [7] * 50, "a.b": [2] * 50},
        **changes,
    )
    bench.begin()
    return bench


def requests(bench: Bench) -> dict[int, str]:
    return {c.trajectory: c.variant for c in only(bench.everything, Generate)}


def test_a_budget_names_so_many_of_each_and_the_others_have_none() -> None:
    bench = begun((1, "hint"), (1, "hint:0.25"))
    assert requests(bench) == {0: "hint", 1: "hint:0.25", 2: ""}


def test_a_selector_samples_a_variant_and_views_and_rewards_know_it() -> None:
    bench = begun()
    bench.ask(0, Sample(2, variant="a.b"))
    assert requests(bench) == {0: "", 1: "", 2: "", 3: "a.b", 4: "a.b"}
    [judge] = only(bench.tokens(3, 4, "stop"), RequestReward)
    assert judge.variant == "a.b"
    bench.ask(0)
    members = {m.id: m.variant for m in bench.selector.seen[-1][0].members}
    assert members == {0: "", 1: "", 2: "", 3: "a.b", 4: "a.b"}


def test_a_variant_counts_its_tokens_by_the_share_that_it_names() -> None:
    core = begun().core
    assert [core.variant_tokens(3, v) for v in ("", "hint", "hint:0.25", "hint:0")] == [0, 7, 1, 0]


@pytest.mark.parametrize(
    "variant, why",
    [
        ("hunt", r"'hunt' names no column that is loaded; data\.variants: a\.b, hint"),
        ("hunt:0.5", "names no column that is loaded"),
        ("hint:1.5", r"'1\.5' is no share from 0 to 1"),
        ("hint:half", "'half' is no share"),
    ],
)
def test_an_unknown_variant_is_refused_by_the_name_of_the_plugin(variant: str, why: str) -> None:
    with pytest.raises(PluginFault, match=rf"^selector Scripted, group 0: .*{why}"):
        begun().ask(0, Sample(1, variant=variant))
    with pytest.raises(PluginFault, match=rf"budget Given: .*{why}"):
        begun((1, variant))


@pytest.mark.parametrize("variants", [((0, "hint"),), ((2, "hint"), (2, "a.b"))], ids=str)
def test_variants_of_a_budget_have_to_fit_its_candidates(variants: Any) -> None:
    with pytest.raises(PluginFault, match="at least one candidate each, 3 in all"):
        begun(*variants)


def test_a_trained_group_says_which_prompt_is_whose_and_its_record_too() -> None:
    bench = begun((1, "hint"))
    commands = bench.train_one(0)
    [train] = only(commands, TrainGroup)
    assert train.variants == {0: "hint"}
    bench.learn(commands)
    [group] = [r.fields for r in only(bench.everything, Report) if r.what == "group"]
    assert group["variants"] == {"0": "hint"}
    assert bench.accounts == {"trained": 7}, "what stands behind the prompt was not sampled"


def test_the_plugins_hear_of_the_variants_of_scored_members() -> None:
    heard: list[Any] = []
    bench = begun((1, "hint"))
    bench.selector.ended = heard.append
    bench.learn(bench.train_one(0))
    [view] = heard
    assert (view.rewards, view.variants) == ((1.0, 0.0), ("hint", ""))


def test_streamed_tokens_and_versions_that_close_name_the_variant() -> None:
    bench = begun((1, "hint"), stream=True, steps=3, prompts=9, max_staleness=1)
    [hint] = only(bench.tokens(0, 3), StreamTokens)
    assert hint.variant == "hint"
    bench.tokens(3, 2)
    commands = bench.train_one(0)
    [train] = only(commands, TrainGroup)
    before = len(bench.everything)
    bench.learn([train])
    [order] = only(bench.everything[before:], CloseVersion)
    assert order.variants == {3: "hint"}


def test_a_resume_keeps_the_variant() -> None:
    bench = begun((1, "hint"))
    saved = msgspec.msgpack.decode(
        msgspec.msgpack.encode(snapshot.take(bench.coordinator)), type=snapshot.Snapshot
    )
    again = Coordinator(bench.settings, bench.core.plugins, [5] * 50, variants={"hint": [7] * 50})
    snapshot.restore(again, saved, 0.0)
    assert [m.variant for m in again.core.groups[0].members] == ["hint", "", ""]


def test_the_record_of_a_decision_says_what_was_sampled() -> None:
    bench = begun()
    [said] = only(bench.ask(0, Sample(2, variant="hint:0.5", why="too hard")), Report)
    assert {k: said.fields[k] for k in ("action", "n", "variant", "why")} == {
        "action": "Sample",
        "n": 2,
        "variant": "hint:0.5",
        "why": "too hard",
    }


def test_of_two_members_that_are_trained_on_the_outcomes_know_the_variant() -> None:
    seen: list[Any] = []

    class Watching:
        def advantages(self, members: Any) -> Any:
            seen.append([m.variant for m in members])
            return Grpo(GrpoOptions()).advantages(members)

    bench = begun((1, "hint"))
    bench.core.plugins = msgspec.structs.replace(bench.core.plugins, advantage=Watching())
    bench.tokens(0, 3, "stop")
    bench.tokens(1, 3, "stop")
    bench.ask(0, Finalize((1, 0)))
    bench.reward(0, 1.0)
    bench.reward(1, 0.0)
    assert seen == [["", "hint"]]
