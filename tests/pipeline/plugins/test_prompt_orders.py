"""Several sources of prompts: weights, epochs of each, and the same order after a resume."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.checkpoint import fingerprint
from pipeline.config.schema import Config, DataConfig, SourceConfig
from pipeline.coordinator import snapshot
from pipeline.coordinator.state import Plugins
from pipeline.plugins.actions import Plan
from pipeline.plugins.prompt_orders.sequential import Sequential
from pipeline.plugins.prompt_orders.shuffled import Shuffled
from pipeline.plugins.prompt_orders.tail_batching import TailBatching
from pipeline.plugins.views import PlanView, SourceView
from pipeline.plugins.walk import OrderOptions
from tests.pipeline.coordinator.world import World, plugins_of, settings_of

SOURCES = (SourceView(0, 30, 2.0), SourceView(30, 7, 1.0), SourceView(37, 100, 0.5))


def view_of(want: int, **given: Any) -> PlanView:
    values: dict[str, Any] = dict(
        step=1, want=want, need=3, first=True, dataset=137, sources=SOURCES,
        outstanding=frozenset(), deferred=(),
    )  # fmt: skip
    return PlanView(**(values | given))


def source_of(prompt: int) -> int:
    return next(i for i, s in enumerate(SOURCES) if s.first <= prompt < s.first + s.count)


@pytest.mark.parametrize("order", [Shuffled(seed=3), Sequential()], ids=["shuffled", "sequential"])
def test_sources_give_prompts_by_weight_at_any_length(order: Any):
    given: Counter[int] = Counter()
    for planned in range(1, 400):
        [prompt] = order.plan(view_of(1)).prompts
        given[source_of(prompt)] += 1
        for number, source in enumerate(SOURCES):
            assert abs(given[number] - planned * source.weight / 3.5) < 1


def test_each_source_has_epochs_of_its_own_in_which_every_prompt_comes_once():
    order = Shuffled(seed=3)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for _ in range(350):
        [prompt] = order.plan(view_of(1)).prompts
        seen[source_of(prompt)].append(prompt)
    for number, source in enumerate(SOURCES):
        prompts = list(range(source.first, source.first + source.count))
        rounds = [
            seen[number][i : i + source.count] for i in range(0, len(seen[number]), source.count)
        ]
        for full in (r for r in rounds if len(r) == source.count):
            assert sorted(full) == prompts
        assert len(set(map(tuple, rounds))) == len(rounds), "an epoch has the order of another"
    assert [state["epoch"] for state in order.state()["sources"]] == [6, 14, 0]
    assert order.epochs == {"0": round(200 / 30, 4), "1": round(100 / 7, 4), "2": 0.5}


def test_a_source_that_has_ended_leaves_the_others_their_proportion():
    order = Shuffled(OrderOptions(epochs=1), seed=1)
    prompts = [p for _ in range(200) for p in order.plan(view_of(1)).prompts]
    assert sorted(prompts) == list(range(137)), "each once, then none"
    # the second has ended after its 7: two weights against a half
    later = [source_of(p) for p in prompts[26:36]]
    assert Counter(later) == {0: 8, 2: 2}


def test_one_source_is_walked_as_a_data_set_without_sources():
    alone = Shuffled(seed=5)
    plain = Shuffled(seed=5)
    for _ in range(60):
        one = alone.plan(view_of(1, dataset=30, sources=SOURCES[:1]))
        assert one == plain.plan(view_of(1, dataset=30, sources=()))


@pytest.mark.parametrize("make", [Shuffled, TailBatching], ids=["shuffled", "tail_batching"])
def test_an_order_goes_on_exactly_from_its_state_at_any_time(make: Any):
    rng = random.Random(7)
    order, plain = make(seed=4), make(seed=4)
    outstanding: list[int] = []
    for _ in range(120):
        view = view_of(rng.randint(1, 5), outstanding=frozenset(outstanding))
        again = make(seed=4)
        again.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(order.state())))
        assert again.epochs == order.epochs  # a step may close without another plan
        order = again  # resumed before every plan
        planned = order.plan(view)
        assert planned == plain.plan(view)
        outstanding += planned.prompts
        rng.shuffle(outstanding)
        del outstanding[rng.randint(0, 8) :]


class Noted(Shuffled):
    """Keeps what it planned for the first time."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.planned: list[int] = []

    def plan(self, view: PlanView) -> Plan:
        plan = super().plan(view)
        self.planned += [prompt for prompt in plan.prompts if prompt not in view.deferred]
        return plan


@pytest.mark.parametrize("halt_at", [60, 120, 200])
def test_a_resumed_run_opens_the_prompts_that_it_would_have_without_the_stop(halt_at: int):
    sources = (SourceView(0, 60, 2.0), SourceView(60, 40, 1.0))
    numbers = settings_of(prompts=100, sources=sources, steps=6, eval_every=0)

    def plugins() -> Plugins:
        return msgspec.structs.replace(plugins_of("first_m", seed=3), prompt_order=Noted(3))

    first = World(5, numbers, plugins())
    first.start()
    first.run(halt_at=halt_at)
    assert first.coordinator.core.step < 6, "there is nothing to resume"
    saved = first.cuts[-1]
    second = World(6, numbers, plugins(), before=first)
    snapshot.restore(second.coordinator, saved, 0.0)
    for group in saved.groups:
        for member in group.members:
            if member.state in ("finished", "truncated") and not member.scored:
                second.rewards[member.id] = None  # type: ignore[assignment]
    second.start(saved.version)
    second.run()
    assert second.coordinator.core.step == 6
    before, after = (w.coordinator.core.plugins.prompt_order for w in (first, second))
    assert isinstance(before, Noted)
    assert isinstance(after, Noted)
    until = sum(source["given"] for source in saved.plugins["prompt_order"]["sources"])
    opened = before.planned[:until] + after.planned
    assert len(after.planned) > 0
    whole = Shuffled(seed=3).plan(view_of(len(opened), dataset=100, sources=sources))
    assert opened == list(whole.prompts)


def test_files_of_several_sources_are_fingerprinted_one_by_one(tmp_path: Path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1=", "answer": "1"}\n')
    (tmp_path / "config.json").write_text("{}")

    def taken(weight: float = 1.0) -> fingerprint.Fingerprint:
        sources = (
            SourceConfig(path=str(tmp_path / "a.jsonl"), weight=weight),
            SourceConfig(path=str(tmp_path / "[bc].jsonl")),
        )
        return fingerprint.fingerprint_of(
            Config(model=str(tmp_path), data=DataConfig(train=sources))
        )

    def changed(before: fingerprint.Fingerprint, after: fingerprint.Fingerprint) -> list[str]:
        found = fingerprint.differences(before, after, "mine.yaml")
        return [line.split(": ", 1)[0] for line in found]

    before = taken()
    assert changed(before, taken(2.0)) == ["data.train.0.weight"]
    (tmp_path / "c.jsonl").write_text('{"prompt": "2=", "answer": "2"}\n')
    assert changed(before, taken()) == ["data.train.1 c.jsonl"]
    [line] = fingerprint.differences(before, taken(), "mine.yaml")
    assert line.endswith("put the data back as it was, here or in mine.yaml")
    (tmp_path / "c.jsonl").unlink()
    assert "data.train.1" in changed(before, taken()), "a file that is gone is a difference"


@pytest.mark.parametrize("make", [Shuffled, Sequential], ids=["shuffled", "sequential"])
def test_an_epoch_begins_only_when_no_prompt_of_the_one_before_waits(make: Any):
    order = make(seed=2) if make is Shuffled else make()
    outstanding: set[int] = set()

    def plan(want: int, free: int | None = None) -> tuple[int, ...]:
        if free is not None:
            outstanding.discard(free)
        view = view_of(want, dataset=5, sources=(), outstanding=frozenset(outstanding))
        planned = order.plan(view).prompts
        outstanding.update(planned)
        return planned

    first = plan(5)
    assert sorted(first) == [0, 1, 2, 3, 4]
    for prompt in first[1:]:  # the second epoch; one prompt of the first is still at work
        outstanding.discard(prompt)
    second = plan(4)
    assert sorted(second) == sorted(first[1:])
    outstanding.difference_update(second)
    assert plan(3) == (), "the third epoch began while a prompt of the second waited"
    assert order.epochs == {"0": 2.0}
    assert plan(1, free=first[0]) == (first[0],), "the one that waited comes first"
    outstanding.clear()
    assert sorted(plan(9)) == [0, 1, 2, 3, 4]
