"""The bias account: an audited step is sampled to its end, trained on as chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from launch.simulate.scenario import Scenario, run_method
from pipeline.coordinator import selection_bias
from pipeline.coordinator.events import AbortLegs, Report, TrainGroup
from pipeline.plugins.actions import Finalize
from pipeline.plugins.advantages.grpo import Grpo, GrpoOptions
from pipeline.plugins.selectors.dual_end import DualEnd, DualEndOptions
from pipeline.simulation.workload import Lengths
from tests.pipeline.coordinator.bench import Bench, only
from tests.pipeline.coordinator.world import World, plugins_of, settings_of


@pytest.mark.parametrize(
    "step,every,expected",
    [(0, 0, False), (0, 1, True), (48, 50, False), (49, 50, True), (99, 50, True)],
)
def test_the_last_step_of_each_stretch_is_audited(step: int, every: int, expected: bool) -> None:
    assert selection_bias.due(step, every) is expected


def test_everyone_is_sampled_to_the_end_and_the_choice_is_trained_on() -> None:
    bench = Bench(need=1, candidates=4, audit_every=1)
    bench.begin()
    bench.tokens(0, 2, "stop")
    bench.tokens(1, 4, "stop")
    commands = bench.ask(0, Finalize((0, 1)))
    commands += bench.reward(0, 1.0)
    commands += bench.reward(1, 0.0)
    assert not only(commands, AbortLegs) and not only(commands, TrainGroup), "two are still running"
    bench.tokens(2, 6, "stop")
    bench.tokens(3, 8, "stop")
    bench.reward(2, 0.0)
    [train] = only(bench.reward(3, 0.0), TrainGroup)
    assert [member.trajectory for member in train.members] == [0, 1]
    shifts = bench.core.stats.bias.means()
    assert shifts["tokens_shift"] == pytest.approx(3.0 - 5.0)
    assert shifts["reward_shift"] == pytest.approx(0.5 - 0.25)
    # trained with 0.5 and -0.5; among all four, of rewards 1, 0, 0, 0, with 0.75 and -0.25
    assert shifts["advantage_shift_by_kind"] == pytest.approx(
        {"right_short": -0.25, "wrong_short": -0.25}
    )
    assert shifts["advantage_moved"] == pytest.approx(0.25)
    assert shifts["members_by_kind"] == {"right_short": 1, "wrong_short": 1}


# Six candidates by length, with rewards; dual-end selection with K = 3, L = 1 trains on 2, 3, 4
# and 10 tokens. 2 to 4 tokens are short, 6 to 10 long. Source of both propositions: arXiv
# 2605.30859; advantages are reward minus mean, then over the deviation of the sample (n - 1).
LENGTHS = (2, 3, 4, 6, 8, 10)
VERBOSE = (1.0, 1.0, 0.0, 0.0, 0.0, 1.0)  # right answers are mostly short
DEEP = (0.0, 0.0, 1.0, 1.0, 1.0, 1.0)  # right answers are mostly long


@dataclass
class Audited:
    """One audited step of one group of these candidates."""

    bench: Bench

    @property
    def audit(self) -> dict[str, Any]:
        [step] = [r.fields for r in only(self.bench.everything, Report) if r.what == "step"]
        return step["audit"]


def audited(
    rewards: Sequence[float], longest: int = 1, size: int = 4, correct: float = 1.0, **options: bool
) -> Audited:
    bench = Bench(
        DualEnd(DualEndOptions(longest=longest, long_wait="group")),
        candidates=6,
        plugins={"advantage": Grpo(GrpoOptions(**options))},
        size=size,
        audit_every=1,
        audit_alarm=0.2,
        eval_correct=correct,
    )
    commands = bench.begin()
    for trajectory, tokens in enumerate(LENGTHS):
        bench.tokens(trajectory, tokens, "stop")
    for trajectory, reward in enumerate(rewards):
        commands = bench.reward(trajectory, reward)
    bench.learn(commands)
    return Audited(bench)


@pytest.mark.parametrize(
    "rewards,divide,expected",
    [
        # Proposition 1, ineffective verbosity. Mean of all 1/2, of the chosen 3/4: the long right
        # answer's advantage falls from 1/2 to 1/4.
        (VERBOSE, False, {"right_short": -0.25, "right_long": -0.25, "wrong_short": -0.25}),
        # Deviation of all sqrt(3/10), of the chosen 1/2: from 0.913 to 0.500, and of the wrong
        # answer from -0.913 to -1.500.
        (VERBOSE, True, {"right_short": -0.4129, "right_long": -0.4129, "wrong_short": -0.5871}),
        # Proposition 2, necessary depth. Mean of all 2/3, of the chosen 1/2: the long right
        # answer's advantage rises from 1/3 to 1/2.
        (DEEP, False, {"right_short": 0.1667, "right_long": 0.1667, "wrong_short": 0.1667}),
        # Deviation of all sqrt(4/15), of the chosen sqrt(1/3): from 0.645 to 0.866, and of the
        # wrong ones from -1.291 to -0.866.
        (DEEP, True, {"right_short": 0.2205, "right_long": 0.2205, "wrong_short": 0.4250}),
    ],
)
def test_a_verbose_right_answers_advantage_falls_and_a_deep_ones_rises(
    rewards: Sequence[float], divide: bool, expected: dict[str, float]
) -> None:
    audit = audited(rewards, divide_by_deviation=divide).audit
    assert audit["advantage_shift_by_kind"] == pytest.approx(expected, abs=1e-4)
    assert audit["members_by_kind"] == {
        "right_short": 2 if rewards is VERBOSE else 1,
        "right_long": 1,
        "wrong_short": 1 if rewards is VERBOSE else 2,
    }
    weighted = [abs(expected[kind]) * count for kind, count in audit["members_by_kind"].items()]
    assert audit["advantage_moved"] == pytest.approx(sum(weighted) / 4, abs=1e-4)
    assert (audit["groups"], audit["signal_lost"]) == (1, 0)


def test_the_alarm_tells_by_how_much_selection_moves_advantages_and_whose() -> None:
    [text] = audited(VERBOSE).bench.warnings()
    assert text == (
        "audit: selection moves the advantage of a member by 0.25 on average, above audit.alarm "
        "(0.2); right and short -0.25, right and long -0.25, wrong and short -0.25"
    )
    assert audited(DEEP).bench.warnings() == [], "0.17 on average"


def test_a_group_whose_signal_selection_took_is_counted_and_not_compared() -> None:
    bench = audited((1.0, 1.0, 1.0, 0.0, 0.0, 1.0), drop_equal=True).bench
    assert bench.fate(0) == ("dropped", "every reward is 1")
    assert bench.core.stats.bias.means() == {"groups": 0, "signal_lost": 1}
    nothing_to_learn = audited((1.0,) * 6, drop_equal=True).bench
    assert nothing_to_learn.core.stats.bias.means() == {}


def test_right_is_what_evaluations_count_as_correct() -> None:
    rewards = (0.5, 0.4, 0.0, 0.0, 0.0, 0.5)
    assert "right_long" not in audited(rewards, correct=1.0).audit["members_by_kind"]
    assert audited(rewards, correct=0.5).audit["members_by_kind"] == {
        "right_short": 1,
        "right_long": 1,
        "wrong_short": 2,
    }


def test_a_choice_of_everyone_moves_no_advantage() -> None:
    audit = audited(VERBOSE, longest=3, size=6).audit
    assert (audit["advantage_moved"], audit["reward_shift"], audit["tokens_shift"]) == (0, 0, 0)
    assert sum(audit["members_by_kind"].values()) == 6


def test_a_choice_that_waits_for_others_to_end_says_for_whom() -> None:
    bench = Bench(need=1, candidates=3, audit_every=1)
    bench.begin()
    bench.tokens(0, 2, "stop")
    bench.tokens(1, 4, "stop")
    bench.ask(0, Finalize((0, 1)))
    bench.reward(0, 1.0)
    bench.reward(1, 0.0)
    [wait] = [wait for wait in bench.coordinator.waits.find() if wait.group == 0]
    assert wait.what.endswith("which waits for trajectory 2, running on e0, 0 tokens")


def test_other_steps_end_what_was_not_chosen() -> None:
    bench = Bench(need=1, candidates=3, audit_every=2)
    bench.begin()
    bench.tokens(0, 2, "stop")
    bench.tokens(1, 4, "stop")
    assert only(bench.ask(0, Finalize((0, 1))), AbortLegs)


@pytest.mark.parametrize("selector", ["first_m", "dual_end", "concise_confident"])
def test_audited_runs_end_and_balance_whatever_happens(selector: str) -> None:
    audits: list[dict[str, Any]] = []
    for seed in range(15):
        settings = settings_of(seed=seed, audit_every=2, steps=4, checkpoint_every=1)
        world = World(seed, settings, plugins_of(selector, seed=seed), faults=0.1)
        world.start()
        world.run()
        assert world.over is not None and world.over.error == ""
        assert not world.coordinator.core.groups
        steps = [r.fields for r in world.reports if isinstance(r, Report) and r.what == "step"]
        assert [("audit" in fields) for fields in steps if fields["groups"].get("trained")].count(
            True
        ) <= 2
        audits += [fields["audit"] for fields in steps if "audit" in fields]
    assert audits
    shifts = [found["tokens_shift"] for found in audits if found["groups"]]
    assert sum(shifts) < 0, "these selectors choose short ones"


def last_audit(deep: float) -> dict[str, Any]:
    """The last audit of a simulated run with dual-end selection, of this share of deep prompts;
    the others are verbose."""
    scenario = Scenario(
        engines=2,
        slots=32,
        lengths=Lengths(median=60, between=0.3, within=0.6, deep=deep, slope=2.0, right=0.0),
        limit=1000,
        prompts=24,
        size=8,
        steps=4,
        dataset=200,
    )
    _, simulation = run_method(scenario, ("budget.redundancy=2", "audit.every=2"))
    audits = [step["audit"] for step in simulation.of("step") if "audit" in step]
    assert len(audits) == 2
    return audits[-1]


def test_a_run_shows_that_verbose_right_answers_get_less_and_deep_ones_more() -> None:
    verbose = last_audit(0.0)
    assert verbose["members_by_kind"]["right_long"] >= 5
    assert verbose["advantage_shift_by_kind"]["right_long"] < -0.05
    deep = last_audit(1.0)
    assert deep["members_by_kind"]["right_long"] >= 5
    assert deep["advantage_shift_by_kind"]["right_long"] > 0.05
    assert deep["advantage_moved"] > 0.05
