"""Idle slots get new candidates of open groups: below the knee, and only when asked for."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from pipeline.coordinator.events import Tick
from pipeline.coordinator.state import PluginFault
from pipeline.plugins.budgets._top_up import (
    BudgetOptions,
    fewest_finished,
    more_candidates,
    slowest_first,
)
from pipeline.plugins.budgets.uniform import Uniform, UniformOptions
from pipeline.plugins.views import OpenView, PredictedLengths
from tests.pipeline.coordinator.bench import Bench, placed
from tests.pipeline.coordinator.world import World, plugins_of, settings_of


def view(
    group: int, *, sampled: int = 4, finished: int = 0, unended: int = 4, enough: bool = False
) -> OpenView:
    return OpenView(
        id=group, size=4, sampled=sampled, finished=finished, unended=unended, enough=enough
    )


ON = BudgetOptions(top_up="fewest", most=2.0)


def test_the_group_with_the_fewest_finished_comes_first_then_the_fewest_unended() -> None:
    groups = [view(1, finished=2), view(2, finished=1, unended=3), view(3, finished=1, unended=1)]
    assert fewest_finished(groups, 1, ON) == [(3, 1)]
    assert fewest_finished(groups, 4, ON) == [(2, 1), (3, 3)]


def test_enough_full_and_switched_off_get_none() -> None:
    assert fewest_finished([view(1, enough=True), view(2, sampled=8)], 5, ON) == []
    assert fewest_finished([view(1, sampled=7)], 5, ON) == [(1, 1)]
    assert more_candidates([view(1)], 5, BudgetOptions()) == []


def predicted(group: int, *unended: float, fresh: float | None, finished: int = 0) -> OpenView:
    lengths = PredictedLengths(unended=unended, fresh=fresh)
    known = view(group, finished=finished, unended=len(unended))
    return msgspec.structs.replace(known, predicted=lambda: lengths)


SLOWEST = BudgetOptions(top_up="slowest", most=2.0)


def test_the_group_whose_last_member_is_furthest_off_comes_first_by_predicted_lengths() -> None:
    groups = [
        predicted(1, 5, 6, 7, 50, fresh=20.0),  # its fourth is 50 tokens off
        predicted(2, 30, finished=3, fresh=20.0),  # 30
        predicted(3, 8, 9, 10, 11, fresh=20.0),  # 11: a new one would end later
    ]
    assert slowest_first(groups, 1, SLOWEST) == [(1, 1)]
    assert slowest_first(groups, 9, SLOWEST) == [(1, 1), (2, 1)], "then each waits for a new one"
    assert more_candidates(groups, 1, SLOWEST) == [(1, 1)]


def test_a_group_that_cannot_have_enough_comes_first_of_all() -> None:
    groups = [predicted(1, 50, fresh=20.0, finished=3), predicted(2, 9, fresh=20.0)]
    assert slowest_first(groups, 3, SLOWEST) == [(2, 3)]
    assert slowest_first(groups, 4, SLOWEST) == [(1, 1), (2, 3)]


def test_the_fewest_finished_count_while_no_length_is_known() -> None:
    groups = [predicted(1, 50, fresh=None, finished=3), predicted(2, 9, 9, 9, 9, fresh=None)]
    assert more_candidates(groups, 1, SLOWEST) == [(2, 1)]


def budget(most: float = 2.0) -> Uniform:
    return Uniform(UniformOptions(redundancy=1.0, top_up="fewest", most=most))


def test_idle_slots_are_filled_up_to_the_knee() -> None:
    bench = Bench(plugins={"budget": budget()}, need=1, prompts=5, size=4, knee=6)
    begun = placed(bench.begin(slots=20))
    assert bench.group(0).sampled == 6, "4 candidates and 2 more: the knee is at 6"
    assert begun == [(trajectory, 0) for trajectory in range(6)]
    more = bench.tokens(0, 3, "stop")
    assert bench.group(0).sampled == 7
    assert placed(more) == [(6, 0)], "at once, not at the next event"


def test_a_closing_step_gets_none() -> None:
    bench = Bench(plugins={"budget": budget(most=4.0)}, need=1, prompts=5, size=2, knee=3)
    bench.begin(slots=20)
    assert bench.group(0).sampled == 3
    bench.train_one(0)
    assert all(g.state != "open" for g in bench.core.groups.values())


class Greedy(Uniform):
    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        return [(groups[0].id, idle + 1)]


def test_more_than_is_idle_is_refused_by_name() -> None:
    bench = Bench(plugins={"budget": Greedy()}, need=1, prompts=5, knee=9)
    with pytest.raises(PluginFault, match="budget Greedy: top-up"):
        bench.begin(slots=20)


class Counting(Uniform):
    asked = 0

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        self.asked += 1
        return []


@pytest.mark.parametrize("groups,changes", [(32, 1), (64, 2), (100, 3)])
def test_of_many_open_groups_it_is_asked_the_less_often(groups: int, changes: int) -> None:
    counting = Counting(UniformOptions(redundancy=1.0))
    bench = Bench(plugins={"budget": counting}, need=groups, prompts=groups, knee=999)
    bench.begin(slots=999)
    assert counting.asked == 1
    for trajectory in range(2 * changes):  # each frees a slot, and no group is complete
        assert counting.asked == 1 + trajectory // changes
        bench.tokens(2 * trajectory, 3, "stop")
    assert counting.asked == 3
    bench.tokens(2 * 40 + 1, 1)
    assert counting.asked == 3, "nothing has changed"


def test_at_a_tick_it_is_asked_if_anything_has_changed() -> None:
    counting = Counting(UniformOptions(redundancy=1.0))
    bench = Bench(plugins={"budget": counting}, need=100, prompts=100, knee=999)
    bench.begin(slots=999)
    bench.handle(Tick())
    assert counting.asked == 1
    bench.tokens(0, 3, "stop")
    assert counting.asked == 2, "at the first change after a tick"
    bench.tokens(2, 3, "stop")
    assert counting.asked == 2
    bench.handle(Tick())
    assert counting.asked == 3


@pytest.mark.parametrize("selector", ["first_m", "dual_end", "concise_confident", "all"])
def test_runs_with_top_up_end_and_balance(selector: str) -> None:
    topped = 0
    for seed in range(12):
        plugins = plugins_of(selector, seed=seed, redundancy=1.0, top_up="fewest")
        world = World(seed, settings_of(seed=seed, knee=6), plugins, faults=0.1)
        world.start()
        world.run()
        assert world.over is not None and world.over.error == ""
        topped += sum("top-up" in report.fields.get("why", "") for report in world.reports)
    assert topped > 0
