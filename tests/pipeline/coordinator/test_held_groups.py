"""Groups that their selector holds open, and steps in which all that is left sleeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.plugins.actions import (
    Allocation,
    AnyAction,
    BatchAction,
    Close,
    Defer,
    Drop,
    Finalize,
    Hold,
    Leave,
    Park,
    Sample,
    Take,
)
from pipeline.plugins.interfaces import SelectorEvent, Wants
from pipeline.plugins.views import BatchView, EndedView, GroupView, OpenView
from tests.pipeline.coordinator.bench import Bench, Candidates


def held(**changes: Any) -> Bench:
    """Group 0 is held and its two members have ended, with rewards."""
    bench = Bench(candidates=2, tries=30.0, **changes)
    bench.begin()
    bench.ask(0, Hold("waits for more"))
    for member, value in ((0, 1.0), (1, 0.0)):
        bench.tokens(member, 3, "stop")
        bench.reward(member, value)
    return bench


def test_a_held_group_outlives_its_members_and_another_is_opened_in_its_place() -> None:
    bench = held()
    assert bench.group(0).is_open
    assert bench.group(0).held
    assert [g for g in bench.core.groups if g] == [1]


def test_a_held_group_gets_more_candidates_and_is_trained_on() -> None:
    bench = held()
    bench.ask(0, Sample(1))
    assert not bench.group(0).held
    newest = bench.group(0).members[-1].id
    bench.selector.say(0, Finalize((0, 1, newest)))
    bench.tokens(newest, 3, "stop")
    bench.learn(bench.reward(newest, 1.0))
    assert bench.fate(0)[0] == "trained"


def test_a_step_that_has_enough_gives_a_held_group_back() -> None:
    bench = held()
    bench.learn(bench.train_one(1))
    assert bench.fate(0) == ("deferred", "surplus")
    assert bench.core.step == 1


def test_a_held_group_stays_over_a_publish_where_generation_runs_ahead() -> None:
    bench = held(max_staleness=2, stale="drop", steps=4)
    bench.learn(bench.train_one(1))
    bench.close_version()
    assert bench.group(0).held


def test_a_held_group_is_held_after_a_resume() -> None:
    bench = held()
    saved = snapshot.take(bench.coordinator)
    again = Coordinator(bench.settings, bench.core.plugins, [5] * bench.settings.prompts)
    snapshot.restore(again, saved, now=1.0)
    assert again.core.groups[0].held
    assert again.core.group_index.held == 1


class Sleeps:
    """Selector: parks whatever runs until the step has ended, and chooses nobody."""

    wants = Wants(every=1)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        running = tuple(m.id for m in group.members if m.state == "running")
        if running:
            yield Park(running, until="published")


@pytest.mark.parametrize("stale", ["wait", "drop"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_step_in_which_all_sleeps_ends_and_wakes_them(k: int, stale: str) -> None:
    """It raised its barrier and lowered it again for ever, with the stage at full load."""
    bench = Bench(Sleeps(), candidates=2, steps=3, need=2, max_staleness=k, stale=stale, prompts=50)
    bench.begin(slots=200)
    for _ in range(200):
        running = [t.id for t in bench.core.trajectories.values() if t.state == "running"]
        if bench.over is not None or not running:
            break
        bench.tokens(running[0], 1)
    assert bench.over is not None
    assert bench.core.step == 3


class Leaves:
    """Batch rule: leaves the first ready group, takes the others."""

    def __init__(self) -> None:
        self.left = False

    def decide(self, view: BatchView) -> Iterable[BatchAction]:
        ready = view.ready
        if ready and not self.left:
            self.left = True
            yield Leave(ready[:1], why="another one instead", kind="left")
            ready = ready[1:]
        if ready:
            yield Take(ready)
        if view.taken + len(ready) >= view.need and not view.closing:
            yield Close()


def test_a_batch_rule_gives_a_ready_group_back() -> None:
    bench = Bench(plugins={"batch": Leaves()}, tries=30.0)
    bench.begin()
    bench.train_one(0)
    assert bench.fate(0) == ("deferred", "another one instead")
    assert bench.coordinator.group_manager.outstanding[0] == 1, "its prompt is asked again"
    assert bench.core.stats.kinds == {"left": 1}


class OnRewards(Candidates):
    """Budget: one candidate more for a group with a reward, whoever is idle."""

    on_rewards = True

    def __init__(self) -> None:
        super().__init__(2)
        self.seen: list[tuple[float, ...]] = []

    def allocate(self, prompts: Any, view: Any) -> Sequence[Allocation]:
        return [
            Allocation(candidates=2, max_tokens=view.max_tokens, note="pilots") for _ in prompts
        ]

    def top_up(self, groups: Sequence[OpenView], idle: int) -> Sequence[tuple[int, int]]:
        known = [g for g in groups if g.rewards]
        self.seen += [g.rewards for g in known]
        return [(g.id, 1) for g in known if g.sampled == 2 and g.note == "pilots"]


def test_a_budget_that_wants_rewards_gives_more_though_no_slot_is_idle() -> None:
    budget = OnRewards()
    bench = Bench(plugins={"budget": budget}, tries=30.0)
    bench.begin(slots=2)
    bench.ask(0, Hold())
    bench.tokens(0, 3, "stop")
    bench.reward(0, 1.0)
    assert budget.seen[0] == (1.0,)
    assert bench.group(0).sampled == 3


class Listens:
    """Keeps what it is told of groups that have ended."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.told = inner, list[EndedView]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def ended(self, group: EndedView) -> None:
        self.told.append(group)


@pytest.mark.parametrize("kind", ["prompt_order", "budget", "selector", "batch", "advantage"])
def test_every_kind_of_plugin_hears_how_each_group_ended(kind: str) -> None:
    bench = Bench(candidates=2, tries=30.0)
    listener = Listens(getattr(bench.core.plugins, kind))
    bench = Bench(
        listener if kind == "selector" else None,
        candidates=2,
        tries=30.0,
        plugins={kind: listener},
    )
    if kind == "selector":
        bench.selector = listener
    bench.begin()
    bench.ask(0, Drop(why="1.00 of 2 right", kind="easy"))
    bench.ask(1, Defer(why="0.00 of 2 right", kind="hard"))
    assert [(t.group, t.fate, t.kind) for t in listener.told] == [
        (0, "dropped", "easy"),
        (1, "deferred", "hard"),
    ]
    assert bench.core.stats.fates == {"dropped: easy": 1, "deferred: hard": 1}
