"""Who is waited for: quorum ends a step with fewer members, tail batching puts the long off.

With whole runs of both, and of the selectors' options that end a group early.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.coordinator.events import RequestReward, TrainGroup
from pipeline.plugins.actions import Close, Plan, Relax, Take
from pipeline.plugins.batch_rules.quorum import Quorum, QuorumOptions
from pipeline.plugins.prompt_orders.tail_batching import TailBatching, TailBatchingOptions
from pipeline.plugins.selectors.concise_confident import ConciseConfident, ConciseConfidentOptions
from pipeline.plugins.selectors.dual_end import DualEnd, DualEndOptions
from pipeline.plugins.testing import option_problems
from pipeline.plugins.views import BatchView, PlanView
from tests.pipeline.coordinator.world import World, ran

# --- quorum ----------------------------------------------------------------------------------


def batch(**given: Any) -> BatchView:
    values: dict[str, Any] = dict(
        step=1, need=10, taken=0, ready=(), chosen=0, enough=0, open=10,
        size=8, group_size=8, closing=False,
    )  # fmt: skip
    return BatchView(**(values | given))


def test_quorum_relaxes_open_groups_when_its_share_of_the_step_is_in():
    assert list(Quorum().decide(batch(taken=3, ready=(7, 4), chosen=1, enough=2))) == [
        Take(groups=(7, 4))  # 8 of 10
    ]
    assert list(Quorum().decide(batch(taken=3, ready=(7, 4), chosen=1, enough=3))) == [
        Take(groups=(7, 4)),
        Relax(size=6),
    ]


def test_quorum_relaxes_once_a_step_and_closes_as_fifo_does():
    assert list(Quorum().decide(batch(taken=9, size=6))) == []
    assert list(Quorum().decide(batch(taken=9, enough=1))) == [Close()]
    assert list(Quorum().decide(batch(taken=10, closing=True))) == []
    assert list(Quorum().decide(batch(need=0))) == [Close()]  # no prompts left to open


@pytest.mark.parametrize("share,need,relaxed_from", [(0.55, 100, 55), (0.9, 10, 9), (0.1, 30, 3)])
def test_quorum_counts_a_share_exactly(share: float, need: int, relaxed_from: int):
    quorum = Quorum(QuorumOptions(share=share))
    asked = [bool(list(quorum.decide(batch(need=need, chosen=n)))) for n in range(need)]
    assert asked.index(True) == relaxed_from
    assert all(asked[relaxed_from:])


def test_quorum_of_every_group_or_every_member_is_fifo():
    for options in (QuorumOptions(share=1.0), QuorumOptions(size=8)):
        assert list(Quorum(options).decide(batch(taken=9))) == []


def test_quorum_names_options_out_of_range():
    assert option_problems(QuorumOptions, share=0.0, size=1) == [
        "share: found 0.0, expected above 0 and at most 1",
        "size: found 1, expected at least 2",
    ]
    assert option_problems(QuorumOptions, size=9) == ["size is 9, but group.size is 8: from 2 to 8"]
    assert option_problems(QuorumOptions) == []


# --- tail batching ---------------------------------------------------------------------------


def view_of(**given: Any) -> PlanView:
    values: dict[str, Any] = dict(
        step=1, want=4, need=3, first=True, dataset=20, outstanding=frozenset(), deferred=()
    )
    return PlanView(**(values | given))


def test_tail_batching_leaves_deferred_prompts_out_of_short_rounds():
    order = TailBatching()
    first = order.plan(view_of())
    assert len(first.prompts) == 4 and first.speculate
    second = order.plan(view_of(deferred=first.prompts[:2]))
    assert second.speculate and not set(second.prompts) & set(first.prompts)
    # a group without signal is replaced by a new prompt, however long the queue is
    refill = order.plan(view_of(want=1, first=False, deferred=first.prompts))
    assert refill.speculate and not set(refill.prompts) & {*first.prompts, *second.prompts}


def test_tail_batching_plans_a_long_round_of_the_oldest_when_they_fill_a_step():
    order = TailBatching()
    seen = order.plan(view_of(want=5)).prompts
    assert order.plan(view_of(deferred=seen[:2])).speculate
    assert order.plan(view_of(deferred=seen[2:])) == Plan(prompts=seen[2:], speculate=False)
    assert order.plan(view_of(deferred=seen)) == Plan(prompts=seen[:3], speculate=False)


def test_tail_batching_fills_a_long_round_from_the_queue_then_from_the_walk():
    order = TailBatching()
    seen = order.plan(view_of(want=4)).prompts
    order.plan(view_of(deferred=seen))
    more = view_of(want=2, first=False, outstanding=frozenset(seen[:3]), deferred=seen[3:])
    refill = order.plan(more).prompts
    assert refill[0] == seen[3] and refill[1] not in seen
    assert order.plan(view_of(deferred=())).speculate  # the next step is a short round


def test_tail_batching_plans_the_rest_of_the_queue_when_the_data_has_ended():
    order = TailBatching(TailBatchingOptions(epochs=1))
    seen = order.plan(view_of(want=5, dataset=6)).prompts
    last = order.plan(view_of(dataset=6, deferred=seen[:2]))
    assert last == Plan(prompts=(15 - sum(seen), *seen[:2]))  # 0..5 sum to 15
    assert order.plan(view_of(dataset=6, deferred=seen[3:])) == Plan(
        prompts=seen[3:], speculate=False
    )
    assert order.plan(view_of(dataset=6)).prompts == ()


def test_tail_batching_goes_on_in_the_same_round_after_a_restore():
    order, again = TailBatching(seed=3), TailBatching(seed=3)
    seen = order.plan(view_of(want=4)).prompts
    order.plan(view_of(deferred=seen))
    again.restore(order.state())
    more = view_of(want=2, first=False, outstanding=frozenset(seen[:3]), deferred=seen[3:])
    assert again.plan(more) == order.plan(more)
    with pytest.raises(ValueError, match="state of tail_batching expected"):
        again.restore({"version": 1, "epoch": 0, "position": 0, "waiting": []})


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(1, 6), st.randoms(use_true_random=False)), max_size=30),
)
def test_tail_batching_plans_every_prompt_once_an_epoch_whatever_is_deferred(
    dataset: int, steps: list[tuple[int, Any]]
):
    order = TailBatching(seed=5)
    new: list[int] = []
    deferred: list[int] = []
    for want, rng in steps:
        view = view_of(want=want, need=3, dataset=dataset, deferred=tuple(deferred))
        plan = order.plan(view)
        queued = [prompt for prompt in plan.prompts if prompt in deferred]
        assert plan.prompts and len(set(plan.prompts)) == len(plan.prompts) <= want
        assert not plan.speculate or not queued or len(plan.prompts) - len(queued) < want
        new += [prompt for prompt in plan.prompts if prompt not in deferred]
        deferred = [prompt for prompt in deferred if prompt not in queued]
        deferred += [prompt for prompt in plan.prompts if rng.random() < 0.3]
        state, order = order.state(), TailBatching(seed=5)
        order.restore(state)
    counts = [new.count(prompt) for prompt in range(dataset)]
    assert max(counts) - min(counts) <= 1


# --- whole runs ------------------------------------------------------------------------------


def told(world: World, what: str) -> list[dict[str, Any]]:
    return [report.fields for report in world.reports if report.what == what]


def test_a_run_with_a_quorum_trains_last_groups_on_its_size_and_no_group_on_less():
    world = ran(1, dict(need=4), batch=Quorum(QuorumOptions(share=0.5, size=3)))
    sizes = [
        sum(member[5] for member in group["members"])
        for group in told(world, "group")
        if group["fate"] == "trained"
    ]
    assert len(sizes) == 12, "3 steps of 4 groups"
    assert set(sizes) == {3, 4}


class Watched(TailBatching):
    """Keeps what it was asked and what it planned."""

    def __init__(self, options: TailBatchingOptions | None = None, *, seed: int = 0) -> None:
        super().__init__(options, seed=seed)
        self.seen: list[tuple[PlanView, Plan]] = []

    def plan(self, view: PlanView) -> Plan:
        plan = super().plan(view)
        self.seen.append((view, plan))
        return plan


def test_a_run_with_tail_batching_has_long_rounds_and_loses_no_prompt():
    order = Watched(TailBatchingOptions(epochs=1), seed=2)
    world = ran(2, dict(steps=20, reserve=2, prompts=24), prompt_order=order)
    long = [(view, plan) for view, plan in order.seen if view.first and not plan.speculate]
    full = [plan.prompts for view, plan in long if len(view.deferred) >= 3]
    assert full and all(len(prompts) == 3 for prompts in full)
    fates: dict[int, list[str]] = {}
    for group in told(world, "group"):
        fates.setdefault(group["prompt"], []).append(group["fate"])
    assert sorted(fates) == list(range(24))
    assert any(fate[0] == "deferred" for fate in fates.values())
    for fate in fates.values():
        assert set(fate[:-1]) <= {"deferred"} and fate[-1] in ("trained", "dropped")
    assert not world.coordinator.group_manager.deferred


def test_a_long_round_samples_no_spare_candidate_and_defers_nobody():
    world = ran(4, dict(steps=8, reserve=2), prompt_order=TailBatching(seed=4))
    again = [group for group in told(world, "group") if group["attempt"]]  # all from long rounds
    assert len(again) >= 3
    assert {len(group["members"]) for group in again} == {4}
    assert "deferred" not in {group["fate"] for group in again}


def test_a_run_with_pruning_ends_each_group_at_its_first_m_finished():
    world = ran(1, {}, selector=DualEnd(DualEndOptions(prune_at=1.5, long_wait="group")))
    reasons = {
        action["why"] for action in told(world, "decision") if action["action"] == "Finalize"
    }
    assert "4 shortest: pruned at 6 candidates" in reasons
    assert reasons <= {"4 shortest: pruned at 6 candidates", "all that ended"}
    trained = [group["members"] for group in told(world, "group") if group["fate"] == "trained"]
    assert len(trained) == 9, "3 steps of 3 groups"
    assert any(member[1] == "aborted" for members in trained for member in members)


def test_a_run_with_depth_stop_scores_the_cut_ones_and_trains_on_them_as_truncated():
    world = ran(4, dict(steps=6), selector=ConciseConfident(ConciseConfidentOptions(depth="stop")))
    decisions = told(world, "decision")
    cut = {i for action in decisions if action["action"] == "Stop" for i in action["ids"]}
    assert cut, "nobody was cut: choose another seed"
    judged = [c for c in world.commands if isinstance(c, RequestReward) and c.trajectory in cut]
    assert len(judged) == len(cut) and {c.finish for c in judged} == {"length"}
    trained = [m for c in world.commands if isinstance(c, TrainGroup) for m in c.members]
    assert all(m.truncated for m in trained if m.trajectory in cut)
    assert any(m.trajectory in cut for m in trained)
    sizes = {len(c.members) for c in world.commands if isinstance(c, TrainGroup)}
    assert sizes == {4}


def test_long_rounds_sample_more_than_they_train_on_only_when_asked_to():
    for speculate in (False, True):
        order = TailBatching(TailBatchingOptions(speculate=speculate))
        view = PlanView(
            step=5, want=2, need=2, first=True, dataset=9, outstanding=frozenset(), deferred=(3, 4)
        )
        assert order.plan(view) == Plan(prompts=(3, 4), speculate=speculate)
