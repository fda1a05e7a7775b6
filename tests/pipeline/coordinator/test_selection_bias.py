"""The bias account: an audited step is sampled to its end, trained on as chosen."""

from __future__ import annotations

import pytest

from pipeline.coordinator import selection_bias
from pipeline.coordinator.events import AbortLegs, Report, TrainGroup
from pipeline.plugins.actions import Finalize
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
    # Had all four been trained on, their advantages would be those of rewards 1, 0, 0, 0.
    assert shifts["advantage_shift"] > 0


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
    audits: list[dict[str, float]] = []
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
    assert sum(found["tokens_shift"] for found in audits) < 0, "these selectors choose short ones"
