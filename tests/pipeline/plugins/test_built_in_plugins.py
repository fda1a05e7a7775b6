"""Budget, batch, advantage, orders and the built-in rewards."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.hardware.latency_model import LatencyModel
from pipeline.plugins import registry
from pipeline.plugins.actions import Advantages, Close, NoSignal, Take
from pipeline.plugins.advantages._shaping import overlong_penalty
from pipeline.plugins.advantages.grpo import Grpo, GrpoOptions
from pipeline.plugins.batch_rules.fifo import Fifo
from pipeline.plugins.budgets.uniform import Uniform, UniformOptions
from pipeline.plugins.prompt_orders.sequential import Sequential
from pipeline.plugins.prompt_orders.shuffled import Shuffled
from pipeline.plugins.rewards.exact import Exact, ExactOptions
from pipeline.plugins.rewards.python import Python, PythonOptions
from pipeline.plugins.testing import outcomes_of, sample_of
from pipeline.plugins.views import BatchView, BudgetView, PlanView, PromptView
from pipeline.plugins.walk import OrderOptions, Walk

OF_TRL = "tests.pipeline.workers.reward_functions:of_trl"

# --- budget ----------------------------------------------------------------------------------


def budget_view(size: int, **given: Any) -> BudgetView:
    values: dict[str, Any] = dict(
        step=0, size=size, max_tokens=128, need=4, engines=1, slots=64, latency=LatencyModel()
    )
    return BudgetView(**{**values, **given})


@pytest.mark.parametrize(
    "redundancy,size,candidates",
    [(1.5, 8, 12), (1, 8, 8), (1.5, 3, 5), (1.5, 5, 8), (1.1, 2, 2), (1.25, 2, 3)],
)
def test_uniform_rounds_redundancy_times_m_halves_up(redundancy: float, size: int, candidates: int):
    [allocated] = Uniform(UniformOptions(redundancy=redundancy)).allocate(
        [PromptView(prompt=3, tokens=9)], budget_view(size)
    )
    assert (allocated.candidates, allocated.max_tokens) == (candidates, 128)


# --- batch -----------------------------------------------------------------------------------


def batch(**given: object) -> BatchView:
    values = {
        "step": 1, "need": 4, "taken": 0, "ready": (), "chosen": 0, "enough": 0, "open": 4,
        "size": 8, "group_size": 8, "closing": False,
    }  # fmt: skip
    return BatchView(**(values | given))  # pyright: ignore[reportArgumentType]


def test_fifo_takes_what_is_ready_and_closes_when_enough_is_coming():
    assert list(Fifo().decide(batch())) == []
    assert list(Fifo().decide(batch(taken=1, ready=(7, 3)))) == [Take(groups=(7, 3))]
    assert list(Fifo().decide(batch(taken=1, ready=(7,), chosen=1, enough=1))) == [
        Take(groups=(7,)),
        Close(),
    ]
    assert list(Fifo().decide(batch(taken=4, closing=True))) == []


# --- advantage -------------------------------------------------------------------------------


def values(answer: Advantages | NoSignal) -> list[float]:
    assert isinstance(answer, Advantages)
    return answer.values.tolist()


def test_grpo_is_reward_less_group_mean_and_passes_weights_through():
    answer = Grpo().advantages(outcomes_of([1, 0, 0, 1], weights=[1, 1, 0.5, 0]))
    assert values(answer) == [0.5, -0.5, -0.5, 0.5]
    assert isinstance(answer, Advantages)
    assert answer.weights.tolist() == [1, 1, 0.5, 0]


def test_grpo_divides_by_the_sample_deviation_when_asked():
    grpo = Grpo(GrpoOptions(divide_by_deviation=True))
    # mean 0.25, deviation sqrt((0.75**2 + 3 * 0.25**2) / 3) = 0.5
    assert values(grpo.advantages(outcomes_of([1, 0, 0, 0]))) == pytest.approx(
        [1.5, -0.5, -0.5, -0.5], abs=1e-5
    )


def test_grpo_drops_groups_without_signal_with_the_reason():
    dropping = Grpo(GrpoOptions(drop_equal=True))
    assert dropping.advantages(outcomes_of([1, 1, 1])) == NoSignal(why="every reward is 1")
    assert isinstance(dropping.advantages(outcomes_of([1])), NoSignal)
    assert isinstance(dropping.advantages([]), NoSignal)
    kept = Grpo().advantages(outcomes_of([1, 1, 1]))
    assert values(kept) == [0, 0, 0]


def test_made_up_outcomes_are_truncated_from_the_limit_on():
    found = outcomes_of([1, 1, 1], tokens=[19, 20, 21], max_tokens=20)
    assert [outcome.truncated for outcome in found] == [False, True, True]
    assert not outcomes_of([1], max_tokens=10)[0].truncated, "of no length in particular"


def test_overlong_penalty_falls_linearly_over_the_last_tokens_before_the_limit():
    assert [overlong_penalty(tokens, 20, 4) for tokens in (10, 16, 17, 18, 20)] == [
        0, 0, -0.25, -0.5, -1,
    ]  # fmt: skip
    assert overlong_penalty(20, 20, 0) == 0
    # DAPO's formula, arXiv 2503.14476, equation 13, also where the limit is below the zone
    assert [overlong_penalty(tokens, 8, 16) for tokens in (0, 4, 8)] == [-0.5, -0.75, -1]
    grpo = Grpo(GrpoOptions(overlong_tokens=4, drop_equal=True))
    outcomes = outcomes_of([1, 0, 1], tokens=[10, 10, 18], max_tokens=20)
    assert values(grpo.advantages(outcomes)) == pytest.approx([0.5, -0.5, 0])  # 1, 0, 0.5
    # equality is judged without the penalty
    right = outcomes_of([1, 1], tokens=[10, 20], max_tokens=20)
    assert isinstance(grpo.advantages(right), NoSignal)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=16), st.booleans(), st.booleans())
def test_grpo_advantages_are_finite_and_sum_to_zero(rewards: list[float], divide: bool, drop: bool):
    grpo = Grpo(GrpoOptions(divide_by_deviation=divide, drop_equal=drop))
    answer = grpo.advantages(outcomes_of(rewards))
    if isinstance(answer, Advantages):
        assert np.isfinite(answer.values).all()
        assert abs(answer.values.sum()) < 1e-6 * max(1.0, np.abs(answer.values).max())


# --- orders ----------------------------------------------------------------------------------


def plan(
    order: Walk,
    want: int,
    dataset: int,
    outstanding: Collection[int] = (),
    deferred: tuple[int, ...] = (),
) -> tuple[int, ...]:
    view = PlanView(
        step=1, want=want, dataset=dataset, outstanding=frozenset(outstanding), deferred=deferred
    )
    return order.plan(view).prompts


def test_sequential_goes_through_the_data_set_in_its_order_again_and_again():
    order = Sequential()
    assert [plan(order, 2, 3) for _ in range(3)] == [(0, 1), (2, 0), (1, 2)]


def test_shuffled_has_an_order_for_each_epoch_that_follows_from_the_seed():
    first, same, other = Shuffled(seed=1), Shuffled(seed=1), Shuffled(seed=2)
    epoch = plan(first, 50, 50)
    assert sorted(epoch) == list(range(50))
    assert plan(same, 50, 50) == epoch
    assert plan(other, 50, 50) != epoch
    again = plan(first, 50, 50)
    assert sorted(again) == list(range(50))
    assert again != epoch


def test_deferred_prompts_come_first_and_outstanding_ones_wait_without_being_lost():
    order = Sequential()
    assert plan(order, 2, 4) == (0, 1)
    assert plan(order, 2, 4, outstanding={0}, deferred=(1,)) == (1, 2)
    assert plan(order, 2, 4, outstanding={0, 1, 2}) == (3,)  # the next epoch: 0 waits
    assert plan(order, 2, 4, outstanding={1, 2, 3}) == (0,)


def test_a_data_set_smaller_than_what_is_wanted_gives_what_is_free():
    order = Sequential()
    assert plan(order, 16, 3) == (0, 1, 2)
    assert plan(order, 16, 3, outstanding={0, 1, 2}) == ()
    assert plan(order, 16, 3, outstanding={0}) == (1, 2)
    assert plan(order, 16, 0) == ()


def test_epochs_end_when_they_were_asked_to():
    order = Sequential(OrderOptions(epochs=2))
    assert [plan(order, 2, 3) for _ in range(4)] == [(0, 1), (2, 0), (1, 2), ()]
    assert plan(order, 2, 3, deferred=(1,)) == (1,)


@given(
    st.sampled_from([Sequential, Shuffled]),
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 6), st.randoms(use_true_random=False)), max_size=30),
)
def test_every_prompt_is_planned_once_an_epoch_whatever_is_outstanding_and_restored(
    kind: type[Sequential] | type[Shuffled], dataset: int, rounds: list[tuple[int, object]]
):
    order = kind(seed=5)
    planned: list[int] = []
    outstanding: set[int] = set()
    deferred: list[int] = []
    for want, rng in rounds:
        found = plan(order, want, dataset, outstanding, tuple(deferred))
        assert len(found) == len(set(found)) <= want
        assert not outstanding & set(found)
        planned += [prompt for prompt in found if prompt not in deferred]
        deferred = [prompt for prompt in deferred if prompt not in found]
        outstanding |= set(found)
        for prompt in sorted(outstanding):
            fate = rng.random()  # pyright: ignore
            if fate < 0.5:
                outstanding.remove(prompt)
                if fate < 0.2:
                    deferred.append(prompt)
        again = kind(seed=5)
        again.restore(order.state())
        order = again
    counts = [planned.count(prompt) for prompt in range(dataset)]
    assert max(counts) - min(counts) <= 1


# --- rewards ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response,finish,reward",
    [
        ("7+9=16;#16", "stop", 1.0),
        ("#3;#16", "stop", 1.0),
        ("#16;#3", "stop", 0.0),
        ("#16", "length", 0.0),
        ("16", "stop", 0.0),
        ("", "stop", 0.0),
    ],
)
def test_exact_wants_the_answer_after_the_last_marker_and_an_end(
    response: str, finish: str, reward: float
):
    assert Exact().score(sample_of(response, answer="16", finish=finish)) == reward


def test_exact_without_a_marker_compares_the_whole_response():
    assert Exact(ExactOptions(marker="")).score(sample_of("16", answer="16")) == 1.0


def test_python_reward_refuses_what_it_cannot_call():
    def complaint(function: str) -> str:
        [text] = PythonOptions(function=function).problems(8)
        return text

    here = "tests.pipeline.workers.reward_functions"
    assert "expected package.module:callable" in complaint("json.dumps")
    assert "No module named 'nowhere'" in complaint("nowhere:f")
    assert "no attribute 'f'" in complaint(f"{here}:f")
    assert "takes (first, second); expected (prompts" in complaint(f"{here}:of_something_else")
    assert not list(PythonOptions(function=f"{here}:of_trl").problems(8))


def test_python_reward_reads_verls_nested_ground_truth():
    reward = Python(PythonOptions(function="tests.pipeline.workers.reward_functions:of_verl"))
    columns = {"reward_model": {"ground_truth": "5"}, "data_source": "sums"}
    found = reward.score(sample_of("5", answer="", columns=columns))
    assert found == {"score": True, "length": 1, "source": "sums"}


@pytest.mark.parametrize("kind", registry.PACKAGES)
def test_every_plugin_of_the_house_is_found_and_takes_its_options(kind: str):
    needed: dict[str, Any] = {"python": {"function": OF_TRL}, "sum": {"of": ("exact",)}}
    for name in registry.builtin_names(kind):
        if name == "http":
            continue  # asks its server when it is built
        cls = registry.find_plugin(kind, name)
        options = registry.options_type(cls)
        assert cls(options(**needed.get(name, {})))


@pytest.mark.parametrize(
    "text, says",
    [
        (None, "ModuleNotFoundError: No module named 'mine_of_none' (looked for among all"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise ValueError('not today')", "ValueError: not today"),
        ("def f(:", "SyntaxError: invalid syntax"),
    ],
)
def test_a_plugin_that_cannot_be_imported_says_why_and_hints_at_the_path_only_where_that_is_it(
    text: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(tmp_path)
    name = "mine_of_none" if text is None else f"mine_{abs(hash(text))}"
    if text is not None:
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(registry.PluginError) as error:
        registry.find_plugin("selector", f"{name}:Mine")
    assert str(error.value).startswith(f"selector '{name}:Mine': {says}")
    assert ("current directory" in str(error.value)) == (text is None)
