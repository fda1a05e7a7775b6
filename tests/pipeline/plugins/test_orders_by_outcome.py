"""Orders that choose prompts by how their groups ended: worked numbers, pools, and a resume."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.plugins import OrderOptions, Walk
from pipeline.plugins.prompt_orders.difficulty import Difficulty, DifficultyOptions, log_chances
from pipeline.plugins.prompt_orders.mixing import Mixing, MixingOptions, corrected
from pipeline.plugins.prompt_orders.pilot_pool import PilotPool, PilotPoolOptions
from pipeline.plugins.prompt_orders.predictive import Predictive, PredictiveOptions
from pipeline.plugins.prompt_orders.shuffled import Shuffled
from pipeline.plugins.prompt_orders.sorted_load import SortedLoad, SortedLoadOptions
from pipeline.plugins.testing import ended_view, option_problems, plan_view
from pipeline.plugins.views import SourceView

TAGS = ("a", "b", "a", "a", "b", "a", "b", "a", "a", "a", "a", "b")
ORDERS = [Difficulty, Mixing, Predictive, PilotPool, SortedLoad]

# --- the walk, for orders of one's own -------------------------------------------------------


def test_a_walk_of_ones_own_gives_prompts_that_are_not_deferred_and_comes_back_to_others():
    walk = Walk(OrderOptions(epochs=1), lambda source, epoch, count: range(count - 1, -1, -1))
    view = plan_view(9, 5, deferred=(3,))
    assert walk.fresh(view, 2, {2}) == (4, 1)
    assert walk.left == 3, "3 and 2 were passed over, 0 has not come"
    assert walk.fresh(plan_view(9, 5), 9) == (3, 2, 0)


# --- difficulty ------------------------------------------------------------------------------


def test_chances_are_those_of_the_section_difficulty_targeted_selection():
    logs = log_chances(np.array([0.5, 0.501, 0.6]), 0.5, 1e-3)
    chances = np.exp(logs) / np.exp(logs).sum()
    assert chances.tolist() == pytest.approx([0.731059, 0.268941, 2.7e-44], rel=1e-2)


def test_difficulty_draws_by_these_chances_and_without_replacement():
    order = Difficulty(seed=1)
    for prompt, right in enumerate((500, 501, 600)):
        order.ended(ended_view(prompt, [1.0] * right + [0.0] * (1000 - right)))
    first = Counter(order.plan(plan_view(1, 3)).prompts[0] for _ in range(2000))
    assert first[0] / 2000 == pytest.approx(0.731, abs=0.03)
    assert first[2] == 0
    assert sorted(order.plan(plan_view(9, 3)).prompts) == [0, 1, 2]


def test_difficulty_tries_every_prompt_first_then_those_near_the_target():
    order = Difficulty(seed=2)
    seen: list[int] = []
    for _ in range(6):
        [prompt] = order.plan(plan_view(1, 6)).prompts
        seen.append(prompt)
        order.ended(ended_view(prompt, [1, 0] if prompt == 4 else [1, 1]))
        if prompt == 4:
            break
    assert len(set(seen)) == len(seen)
    for prompt in {0, 1, 2, 3, 5} - set(seen):
        order.ended(ended_view(prompt, [0, 0]))
    assert order.plan(plan_view(1, 6)).prompts == (4,)
    assert 4 not in order.plan(plan_view(5, 6, outstanding={4})).prompts
    assert order.plan(plan_view(2, 6, deferred=(5,))).prompts == (5, 4)


def test_difficulty_averages_the_groups_of_a_prompt_and_keeps_to_the_weights_of_sources():
    order = Difficulty(DifficultyOptions(newest=0.25))
    order.ended(ended_view(1, [1, 1]))
    order.ended(ended_view(1, [0, 0]))
    order.ended(ended_view(1))  # nothing was scored
    assert order.state()["prompts"] == [1]
    assert order.state()["rates"] == [0.75]
    sources = (SourceView(0, 4, 9.0), SourceView(4, 4, 1.0))
    drawn, view = Difficulty(seed=3), plan_view(1, 8, sources=sources)
    count = Counter(drawn.plan(view).prompts[0] // 4 for _ in range(1000))
    assert count[0] / 1000 == pytest.approx(0.9, abs=0.03)


# --- mixing ----------------------------------------------------------------------------------


def test_weights_are_those_of_the_section_apriel():
    weights = corrected({"a": 0.5, "b": 0.5}, {"a": 300, "b": 100}, 50, 10.0)
    assert weights == pytest.approx({"a": 1 / 3, "b": 1.0})
    assert weights["a"] / sum(weights.values()) == pytest.approx(0.25)


def test_weights_are_the_base_at_first_and_a_kind_without_completions_gets_the_most():
    base = {"a": 0.9, "b": 0.1}
    assert corrected(base, {"a": 49}, 50, 10.0) == base
    assert corrected(base, {}, 0, 10.0) == base
    assert corrected(base, {"a": 50}, 50, 10.0) == pytest.approx({"a": 0.81, "b": 1.0})
    rare = {"a": 0.95, "b": 0.05}
    assert corrected(rare, {"a": 1, "b": 999}, 50, 10.0) == pytest.approx({"a": 9.5, "b": 0.005})


def test_mixing_corrects_for_a_kind_that_is_completed_less_often():
    order = Mixing(MixingOptions(mix={"a": 0.5, "b": 0.5}), seed=4)
    rng = random.Random(0)
    done: Counter[str] = Counter()
    for _ in range(3000):
        [prompt] = order.plan(plan_view(1, 12, tags=TAGS)).prompts
        if TAGS[prompt] == "a" or rng.random() < 0.25:  # three in four of the others fail
            order.ended(ended_view(prompt, [1, 0], tag=TAGS[prompt]))
            done[TAGS[prompt]] += 1
    assert done["b"] / done.total() == pytest.approx(1 / 3, abs=0.03)  # .2 if not corrected


def test_mixing_goes_through_each_kind_in_epochs_and_without_a_mix_by_number_of_prompts():
    order = Mixing(seed=5)
    planned = [p for _ in range(300) for p in order.plan(plan_view(1, 12, tags=TAGS)).prompts]
    kinds = Counter(TAGS[prompt] for prompt in planned)
    assert kinds["b"] / 300 == pytest.approx(1 / 3, abs=0.08)
    for tag in ("a", "b"):
        of_kind = [prompt for prompt in planned if TAGS[prompt] == tag]
        size = TAGS.count(tag)
        epochs = [of_kind[i : i + size] for i in range(0, len(of_kind) - size, size)]
        assert all(len(set(epoch)) == size for epoch in epochs)
    assert order.epochs == {tag: round(kinds[tag] / TAGS.count(tag), 4) for tag in order.epochs}


def test_mixing_passes_over_a_kind_that_has_nothing_to_give_and_leaves_out_one_without_weight():
    order = Mixing(MixingOptions(mix={"a": 1.0, "b": 0.0}, epochs=1))
    busy = {0, 2, 3}
    view = plan_view(12, 12, tags=TAGS, outstanding=busy, deferred=(5, 1))
    planned = order.plan(view).prompts
    assert planned[:2] == (5, 1), "given back, whatever its weight"
    assert sorted(planned[2:]) == [7, 8, 9, 10]
    assert order.plan(plan_view(12, 12, tags=TAGS)).prompts[0] in busy | {5}
    untagged = Mixing().plan(plan_view(3, 3))
    assert sorted(untagged.prompts) == [0, 1, 2]


def test_mixing_says_which_tags_its_weights_and_the_data_do_not_share():
    order = Mixing(MixingOptions(mix={"a": 1.0, "c": 1.0}))
    with pytest.raises(ValueError, match="mix names a, c, but the data has the tags a, b"):
        order.plan(plan_view(1, 12, tags=TAGS))
    untagged = order.plan(plan_view(1, 12))
    assert untagged.prompts == () and "the data none" in untagged.why


# --- predictive ------------------------------------------------------------------------------


def test_predictive_passes_over_prompts_that_taught_nothing_until_nothing_else_is_left():
    order = Predictive(PredictiveOptions(chance=0.0, epochs=2), seed=6)
    assert sorted(order.plan(plan_view(6, 6)).prompts) == list(range(6))
    for prompt in range(6):
        order.ended(ended_view(prompt, [1, 0] if prompt < 3 else [1, 1]))
    assert sorted(order.plan(plan_view(3, 6)).prompts) == [0, 1, 2]
    again = Predictive(PredictiveOptions(chance=0.0), seed=6)
    for prompt in range(6):
        again.ended(ended_view(prompt, [1, 0] if prompt < 3 else [0, 0]))
    planned = again.plan(plan_view(5, 6)).prompts
    assert set(planned[:3]) == {0, 1, 2} and len(set(planned)) == 5


def test_predictive_draws_what_taught_nothing_with_its_chance_and_forgets_when_it_teaches():
    order = Predictive(PredictiveOptions(chance=0.25), seed=7)
    for prompt in range(1, 2000):
        order.ended(ended_view(prompt, [0, 0, 0]))
    planned = [p for _ in range(100) for p in order.plan(plan_view(1, 2000)).prompts]
    assert 0.2 < len(planned) / (order.epochs["0"] * 2000) < 0.3
    order.ended(ended_view(1, [0, 1]))
    order.ended(ended_view(2, [0]))  # one reward says nothing
    assert order.state()["settled"] == list(range(2, 2000))


# --- pilot_pool ------------------------------------------------------------------------------


def test_a_solved_prompt_sits_out_one_epoch():
    order = PilotPool(seed=8)
    order.plan(plan_view(6, 6))
    order.ended(ended_view(2, [1, 1, 1]))
    order.ended(ended_view(3, [1, 1, 0]))
    order.ended(ended_view(4))
    second = order.plan(plan_view(5, 6)).prompts
    assert sorted(second) == [0, 1, 3, 4, 5]
    third = order.plan(plan_view(6, 6)).prompts
    assert sorted(third) == list(range(6))


def test_a_hard_prompt_is_as_likely_as_any_other_that_is_left_in_the_epoch():
    place: Counter[int] = Counter()
    for seed in range(400):
        order = PilotPool(seed=seed)
        [hard] = order.plan(plan_view(1, 10)).prompts
        for turn in range(10):
            [prompt] = order.plan(plan_view(1, 10, deferred=(hard,))).prompts
            if prompt == hard:
                place[turn] += 1
                break
    assert place.total() == 400, "it comes in this epoch"
    assert max(place.values()) < 70 and len(place) == 10  # 40 each, if all are as likely


def test_a_pool_that_has_ended_gives_what_was_given_back():
    order = PilotPool(PilotPoolOptions(epochs=1), seed=9)
    assert len(order.plan(plan_view(4, 4)).prompts) == 4
    assert order.plan(plan_view(4, 4, deferred=(3, 1))).prompts == (3, 1)
    assert order.plan(plan_view(4, 4)).prompts == ()


# --- sorted_load -----------------------------------------------------------------------------


def test_no_prompt_is_opened_before_the_load_is_used_up():
    order = SortedLoad(SortedLoadOptions(load=5), seed=10)
    load = order.plan(plan_view(4, 20))
    assert len(load.prompts) == 4 and load.why == "a load of 5"
    [last] = order.plan(plan_view(3, 20, outstanding=set(load.prompts))).prompts
    assert order.plan(plan_view(4, 20, outstanding={last})).prompts == ()
    again = order.plan(plan_view(4, 20, deferred=load.prompts[:2], outstanding={last}))
    assert again.prompts == load.prompts[:2]
    assert order.plan(plan_view(1, 20, deferred=load.prompts[:2])).prompts == load.prompts[:1]
    new = order.plan(plan_view(9, 20)).prompts
    assert len(new) == 5 and not set(new) & {*load.prompts, last}


def test_a_load_of_no_size_is_as_large_as_the_step_has_room_for():
    order = SortedLoad(SortedLoadOptions(epochs=1), seed=11)
    assert len(order.plan(plan_view(7, 10)).prompts) == 7
    assert len(order.plan(plan_view(7, 10)).prompts) == 3
    assert order.plan(plan_view(7, 10)).prompts == ()


# --- all of them -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", ORDERS)
def test_an_order_goes_on_exactly_from_its_state_and_plans_nothing_that_is_open(make: Any):
    rng = random.Random(12)
    order, plain = make(seed=13), make(seed=13)
    outstanding: list[int] = []
    deferred: list[int] = []
    planned: set[int] = set()
    for _ in range(150):
        want = rng.randint(1, 4)
        view = plan_view(
            want, 12, outstanding=frozenset(outstanding), deferred=tuple(deferred), tags=TAGS
        )
        again = make(seed=13)
        again.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(order.state())))
        order = again  # resumed before every plan
        prompts = order.plan(view).prompts
        assert prompts == plain.plan(view).prompts
        assert len(prompts) == len(set(prompts)) <= want
        assert not set(prompts) & set(outstanding)
        assert all(type(prompt) is int for prompt in prompts), "a checkpoint holds them"
        planned |= set(prompts)
        deferred = [prompt for prompt in deferred if prompt not in prompts]
        outstanding += prompts
        for prompt in list(outstanding):
            if rng.random() < 0.4:
                fate = rng.choice(["trained", "dropped", "deferred"])
                rewards = [float(rng.random() < 0.6) for _ in range(3)]
                group = ended_view(prompt, rewards, tag=TAGS[prompt], fate=fate)
                outstanding.remove(prompt)
                deferred += [prompt] if fate == "deferred" else []
                for each in (order, plain):
                    if hasattr(each, "ended"):
                        each.ended(group)
    assert planned == set(range(12))


@pytest.mark.parametrize("make", ORDERS)
def test_a_state_of_another_order_is_refused(make: Any):
    name = {Difficulty: "difficulty", Mixing: "mixing", Predictive: "predictive"}
    name |= {PilotPool: "pilot_pool", SortedLoad: "sorted_load"}
    with pytest.raises(ValueError, match=f"state of {name[make]} expected"):
        make(seed=1).restore({**Shuffled(seed=1).state(), "version": 1})


@pytest.mark.parametrize(
    "options, given, complaint",
    [
        (DifficultyOptions, {"target": 1.5}, "target: found 1.5, expected from 0 to 1"),
        (DifficultyOptions, {"temperature": 0.0}, "temperature: found 0.0, expected above 0"),
        (DifficultyOptions, {"newest": 0.0}, "newest: found 0.0, expected above 0 and at most 1"),
        (DifficultyOptions, {"unseen": -0.5}, "unseen: found -0.5, expected from 0 to 1"),
        (MixingOptions, {"most": 0.5}, "most: found 0.5, expected at least 1"),
        (MixingOptions, {"after": -1}, "after: found -1, expected at least 0"),
        (MixingOptions, {"mix": {"a": 0.0}}, "mix is {'a': 0.0}, but weights are at least 0, and"),
        (MixingOptions, {"mix": {"a": 1.0, "b": -1.0}}, "but weights are at least 0, and one is"),
        (PredictiveOptions, {"chance": 2.0}, "chance: found 2.0, expected from 0 to 1"),
        (PilotPoolOptions, {"exclude_from": 0.0}, "exclude_from: found 0.0, expected above 0"),
        (SortedLoadOptions, {"load": -1}, "load: found -1, expected at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options: Any, given: dict[str, Any], complaint: str):
    [found] = option_problems(options, **given)
    assert complaint in found
