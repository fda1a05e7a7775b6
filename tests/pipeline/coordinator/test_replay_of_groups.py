"""Groups that were trained on are kept and trained on again, counted apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import Report, TrainGroup
from pipeline.coordinator.state import PluginFault
from pipeline.plugins.actions import BatchAction, Close, Replay, Take
from pipeline.plugins.views import BatchView
from tests.pipeline.coordinator.bench import Bench, only


class Again:
    """Batch rule: one fresh group, and what `replay` picks of those kept."""

    def __init__(self, *replay: int) -> None:
        self._replay = replay
        self.views: list[BatchView] = []

    def decide(self, view: BatchView) -> Iterable[BatchAction]:
        self.views.append(view)
        if view.ready:
            yield Take(view.ready)
        if view.ready and view.kept:
            yield Replay(self._replay or (view.kept[0].group,), why="half of the batch")
        if view.taken + len(view.ready) and not view.closing:
            yield Close()


def bench_of(rule: Again, **changes: Any) -> Bench:
    bench = Bench(candidates=2, plugins={"batch": rule}, tries=30.0, steps=6, **changes)
    bench.begin()
    bench.learn(bench.train_one(0))
    bench.serve()
    return bench


def newest(bench: Bench) -> int:
    return max(g.id for g in bench.core.groups.values())


def test_a_kept_group_is_trained_on_again_with_what_it_was_sampled_and_judged_by() -> None:
    bench = bench_of(Again(), keep=4)
    [first] = only(bench.everything, TrainGroup)
    fresh, again = only(bench.train_one(newest(bench)), TrainGroup)
    assert again.group not in (first.group, fresh.group)
    for before, now in zip(first.members, again.members, strict=True):
        assert (now.response, now.advantage, now.weight) == (
            before.response,
            before.advantage,
            before.weight,
        )
        assert now.old == now.behaviour, "the ratio is that of policy over behaviour"


def test_replayed_tokens_are_counted_apart_and_the_books_balance() -> None:
    bench = bench_of(Again(), keep=4)
    trained = bench.accounts["trained"]
    sent = bench.train_one(newest(bench))
    bench.learn(sent)
    assert bench.core.ledger.replayed == trained
    assert bench.core.ledger.imbalance == 0
    last = [r.fields for r in only(bench.everything, Report) if r.what == "step"][-1]
    assert last["tokens_replayed"] == trained
    assert last["groups"] == {"trained": 1, "replayed": 1}
    assert bench.core.groups.keys().isdisjoint({g.group for g in only(sent, TrainGroup)})


def test_a_group_that_is_not_kept_or_taken_twice_is_refused() -> None:
    bench = bench_of(Again(7), keep=4)
    with pytest.raises(PluginFault, match="batch Again: .*group 7 is not kept"):
        bench.train_one(newest(bench))
    bench = bench_of(Again(0, 0), keep=4)
    with pytest.raises(PluginFault, match="group 0 is replayed in this step already"):
        bench.train_one(newest(bench))


def test_what_is_too_old_or_too_many_is_let_go() -> None:
    rule = Again()
    bench = bench_of(rule, keep=1)
    bench.learn(bench.train_one(newest(bench)))
    bench.serve()
    assert [k.group for k in rule.views[-1].kept] == [1]
    rule = Again()
    bench = bench_of(rule, keep=4, keep_versions=1)
    for _ in range(2):
        bench.learn(bench.train_one(newest(bench)))
        bench.serve()
    assert bench.core.version == 3
    assert [k.version for k in rule.views[-1].kept] == [2]


def test_kept_groups_are_in_a_checkpoint_also_while_one_is_taken() -> None:
    bench = bench_of(Again(), keep=4)
    bench.train_one(newest(bench))  # and one is replayed, not yet trained on
    saved = snapshot.take(bench.coordinator)
    again = Coordinator(bench.settings, bench.core.plugins, [5] * bench.settings.prompts)
    snapshot.restore(again, saved, now=1.0)
    assert [k.group for k in again.group_manager.replay_buffer.views()] == [0]
    assert any(group.replay for group in again.core.groups.values())
    snapshot.check_prompts(again)
