"""The built-in selectors: what each waits for, chooses, and never does."""

from __future__ import annotations

import pytest

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction, Drop, Enough, Finalize, Stop
from pipeline.plugins.interfaces import (
    Barrier,
    Finish,
    Relaxed,
    SelectorEvent,
    Ticked,
)
from pipeline.plugins.selectors.all import All
from pipeline.plugins.selectors.concise_confident import ConciseConfident, ConciseConfidentOptions
from pipeline.plugins.selectors.dual_end import DualEnd, DualEndOptions
from pipeline.plugins.selectors.first_m import FirstM
from pipeline.plugins.selectors.shortest import Shortest
from pipeline.plugins.testing import Recent, group_of, illegal, option_problems
from pipeline.plugins.views import GroupView

EVENT = Finish(trajectory=1)


def decide(
    selector: interfaces.Selector, group: GroupView, event: SelectorEvent = EVENT
) -> list[AnyAction]:
    return list(selector.decide(group, event))


def chosen(actions: list[AnyAction]) -> tuple[int, ...]:
    [action] = actions
    assert isinstance(action, Finalize)
    return action.ids


# --- all -------------------------------------------------------------------------------------


def test_all_waits_for_every_member_and_takes_truncated_ones():
    waiting = group_of(size=2, finished={1: 10, 2: 20}, running={3: 30})
    assert decide(All(), waiting) == decide(All(), waiting, Barrier()) == []
    group = group_of(size=2, finished={1: 10, 2: 20}, truncated={3: 99})
    assert decide(All(), group) == [Finalize(ids=(1, 2, 3), why="all that were sampled")]


def test_all_leaves_out_members_whose_reward_failed():
    group = group_of(size=3, finished={1: 10, 2: 20, 3: 30}, failed={2})
    assert chosen(decide(All(), group)) == (1, 3)
    lone = group_of(size=3, finished={1: 10, 2: 20}, failed={2})
    [action] = decide(All(), lone)
    assert action == Drop(why="1 usable of the ended members; an advantage needs two")


# --- first_m ---------------------------------------------------------------------------------


def test_first_m_finalizes_when_m_have_finished_in_order_of_arrival():
    group = group_of(size=2, finished={7: 210, 3: 180}, running={5: 95})
    assert decide(FirstM(), group, Ticked()) == [Finalize(ids=(7, 3), why="first M")]


def test_first_m_waits_for_members_of_a_lost_engine():
    assert not decide(FirstM(), group_of(size=2, finished={7: 210}, queued={3: 40}))


def test_first_m_fills_up_with_truncated_ones_only_when_all_have_ended():
    waiting = group_of(size=2, finished={7: 210}, truncated={4: 512}, parked={3: 40})
    assert not decide(FirstM(), waiting)
    ended = group_of(size=2, finished={7: 210}, truncated={4: 512, 3: 512})
    assert decide(FirstM(), ended) == [Finalize(ids=(7, 4), why="all that ended")]


def test_first_m_counts_no_member_whose_reward_failed():
    group = group_of(size=2, finished={7: 1, 3: 2, 5: 3}, running={6: 4}, failed={7})
    assert chosen(decide(FirstM(), group)) == (3, 5)


# --- shortest --------------------------------------------------------------------------------


def test_shortest_takes_the_m_shortest_of_all_with_ties_by_arrival():
    group = group_of(size=2, finished={9: 30, 4: 20, 8: 20, 2: 20}, truncated={1: 5})
    assert decide(Shortest(), group) == [Finalize(ids=(4, 8), why="2 shortest of all")]
    assert not decide(Shortest(), group_of(size=2, finished={9: 30, 4: 20}, running={1: 5}))


def test_shortest_takes_what_has_finished_at_the_barrier():
    group = group_of(size=2, finished={9: 30, 4: 20, 8: 25}, running={1: 5})
    assert chosen(decide(Shortest(), group, Barrier())) == (4, 8)
    assert not decide(Shortest(), group_of(size=3, finished={9: 30}, running={1: 5}), Barrier())


# --- dual_end --------------------------------------------------------------------------------


def test_dual_end_takes_the_k_shortest_and_the_l_longest_finished():
    group = group_of(size=4, finished={1: 50, 2: 10, 3: 40, 4: 20, 5: 30}, truncated={6: 99})
    assert decide(DualEnd(), group) == [
        Finalize(ids=(2, 4, 5, 1), why="3 shortest and 1 longest of all")
    ]
    assert chosen(decide(DualEnd(DualEndOptions(longest=2)), group)) == (2, 4, 1, 3)
    assert chosen(decide(DualEnd(DualEndOptions(longest=0)), group)) == (2, 4, 5, 3)


def test_dual_end_breaks_ties_at_both_ends_by_arrival():
    group = group_of(size=2, finished={5: 10, 3: 10, 9: 10, 1: 10})
    assert chosen(decide(DualEnd(), group)) == (5, 3)


def test_dual_end_takes_truncated_ones_only_when_too_few_others_exist():
    group = group_of(size=3, finished={1: 50, 2: 10}, truncated={6: 99, 7: 99})
    assert chosen(decide(DualEnd(), group)) == (1, 2, 6)


def test_dual_end_as_published_waits_for_every_candidate():
    group = group_of(size=2, finished={1: 50, 2: 10}, running={3: 60})
    assert not decide(DualEnd(DualEndOptions(long_wait="group")), group)


def test_dual_end_with_long_wait_step_is_enough_at_m_and_chooses_at_the_barrier():
    selector = DualEnd(DualEndOptions(long_wait="step"))
    waiting = group_of(size=3, finished={1: 50}, running={3: 60, 4: 1})
    assert decide(selector, waiting) == decide(selector, waiting, Barrier()) == []
    group = group_of(size=2, finished={1: 50, 2: 10, 5: 70}, running={3: 60})
    assert isinstance(decide(selector, group)[0], Enough)
    assert decide(selector, group, Barrier()) == [
        Finalize(ids=(2, 5), why="1 shortest and 1 longest finished at the barrier")
    ]
    ended = group_of(size=2, finished={1: 50, 2: 10})
    assert chosen(decide(selector, ended)) == (2, 1)  # nothing left to wait for


def test_dual_end_keeps_one_short_member_when_the_size_is_relaxed_below_its_long_end():
    selector = DualEnd(DualEndOptions(longest=3))
    group = group_of(size=2, finished={1: 50, 2: 10, 3: 30})
    assert chosen(decide(selector, group, Relaxed())) == (2, 1)


def test_dual_end_prunes_a_group_that_was_given_prune_at_times_m_candidates():
    selector = DualEnd(DualEndOptions(prune_at=2.0, long_wait="group"))
    finished = {1: 50, 2: 10}
    assert not decide(selector, group_of(size=2, finished=finished, running={3: 60}))
    group = group_of(size=2, finished=finished, running={3: 60}, budget=4)  # one was aborted
    assert decide(selector, group) == [
        Finalize(ids=(2, 1), why="2 shortest: pruned at 4 candidates", kind="pruned")
    ]
    assert not decide(DualEnd(DualEndOptions(long_wait="group")), group)
    few = group_of(size=2, finished={1: 50}, truncated={4: 99, 5: 99}, running={3: 60})
    assert not decide(selector, few)  # truncated ones are none of the first M
    # topped up to the bound when more than M had finished: the short end alone
    late = group_of(size=2, finished={1: 50, 2: 10, 4: 20}, running={3: 60})
    assert chosen(decide(selector, late)) == (2, 4)


@pytest.mark.parametrize("prune_at", [-1.0, 0.5, float("nan")])
def test_dual_end_refuses_to_prune_below_m_candidates(prune_at: float):
    [text] = option_problems(DualEndOptions, prune_at=prune_at)
    assert text == f"prune_at: found {prune_at}, expected at least 1, or 0"


def test_dual_end_refuses_a_long_end_as_large_as_the_group():
    assert option_problems(DualEndOptions, longest=8) == [
        "longest is 8, but group.size is 8: at most 7"
    ]
    assert option_problems(DualEndOptions, longest=7) == []


# --- concise_confident -----------------------------------------------------------------------

HUNDRED = Recent(confidences=[-i / 100 for i in range(100)])  # the 0.2 quantile is -0.792
NONE = ConciseConfident(ConciseConfidentOptions(depth="none"))
STEP = ConciseConfident()
STOP = ConciseConfident(ConciseConfidentOptions(depth="stop"))
RIGHT = {1: 1.0, 2: 1.0, 3: 1.0}


def test_concise_confident_without_depth_ends_when_m_pass_the_gate():
    sure = {1: -0.1, 2: -0.1, 3: -0.9}
    group = group_of(
        size=2, finished={3: 5, 1: 50, 2: 40}, running={4: 9}, confidence=sure, statistics=HUNDRED
    )
    assert chosen(decide(NONE, group)) == (2, 1)
    # one passes of two: the gate waits for one more
    group = group_of(
        size=2, finished={3: 5, 1: 50}, running={4: 9}, confidence=sure, statistics=HUNDRED
    )
    assert not decide(NONE, group)


def test_concise_confident_waits_for_slack_members_beyond_m_and_no_longer():
    unsure = {1: -0.95, 2: -0.9, 3: -0.1}
    group = group_of(
        size=2, finished={1: 5, 2: 4, 3: 90}, running={4: 9}, confidence=unsure, statistics=HUNDRED
    )
    [action] = decide(NONE, group)
    assert action == Finalize(ids=(3, 2), why="1 of 2 pass the gate, then the shortest")


def test_concise_confident_has_no_gate_before_64_members_have_finished():
    few = Recent(confidences=[0.0] * 63)
    group = group_of(
        size=2, finished={1: 5, 2: 4}, running={4: 9}, confidence={1: -9, 2: -9}, statistics=few
    )
    assert chosen(decide(NONE, group)) == (2, 1)


def test_concise_confident_with_depth_orders_the_short_end_by_the_gate():
    sure = {1: -0.1, 2: -0.2, 3: -0.95, 4: -0.95}
    group = group_of(
        size=3,
        finished={3: 5, 1: 50, 2: 40, 4: 70},
        running={9: 3},
        confidence=sure,
        statistics=HUNDRED,
    )
    assert isinstance(decide(STEP, group)[0], Enough)  # the gate costs no time
    [action] = decide(STEP, group, Barrier())
    assert action == Finalize(ids=(2, 1, 4), why="2 short (2 pass the gate) and 1 longest")


def test_concise_confident_with_depth_stop_cuts_the_longest_running_where_most_are_right():
    running, queued = {5: 30, 6: 70}, {9: 0}
    group = group_of(
        size=4, finished={1: 50, 2: 10, 3: 40, 4: 20}, running=running, queued=queued, rewards=RIGHT
    )
    assert decide(STOP, group) == [
        Stop(ids=(6,), why="3 of 4 short ones are right"),
        Finalize(ids=(2, 4, 3, 6), why="3 short and 1 cut while running"),
    ]
    assert illegal(group, decide(STOP, group)) == []
    two = ConciseConfident(ConciseConfidentOptions(depth="stop", longest=2))
    assert decide(two, group)[1] == Finalize(
        ids=(2, 4, 6, 5), why="2 short and 2 cut while running"
    )


@pytest.mark.parametrize("size", [2, 3])
def test_concise_confident_keeps_one_short_member_and_no_more_beside_a_long_end_of_any_length(
    size: int,
):
    """Also when the size is relaxed below it."""
    cut = ConciseConfident(ConciseConfidentOptions(depth="stop", longest=5))
    finished = {1: 50, 2: 10, 3: 40}
    group = group_of(size=size, finished=finished, running={5: 60, 6: 70, 7: 80}, rewards=RIGHT)
    [stop, final] = decide(cut, group)
    assert isinstance(stop, Stop)
    assert isinstance(final, Finalize)
    assert stop.ids == (7, 6, 5)[: size - 1]
    assert final.ids == (2, *stop.ids)
    at_barrier = ConciseConfident(ConciseConfidentOptions(longest=5))
    [final] = decide(at_barrier, group, Barrier())
    assert isinstance(final, Finalize)
    assert final.ids == (2, 1, 3)[:size], "the shortest, then the longest finished"
    assert final.why == f"1 short (3 pass the gate) and {size - 1} longest"


def test_concise_confident_cuts_nobody_unless_more_than_half_are_known_to_be_right():
    finished = {1: 50, 2: 10, 3: 40, 4: 20}
    for rewards in ({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0, 3: 0.0, 4: 0.0}):
        group = group_of(size=4, finished=finished, running={6: 70}, rewards=rewards)
        assert chosen(decide(STOP, group)) == (2, 4, 3, 1)


def test_concise_confident_cuts_nobody_who_has_just_begun():
    group = group_of(size=3, finished={1: 50, 2: 10, 3: 40}, running={6: 10}, rewards=RIGHT)
    assert chosen(decide(STOP, group)) == (2, 3, 1)


def test_concise_confident_fills_up_with_truncated_ones_when_all_have_ended():
    group = group_of(size=3, finished={3: 5, 1: 50}, truncated={2: 99, 4: 99})
    for selector in (NONE, STEP, STOP):
        assert chosen(decide(selector, group)) == (3, 1, 2)


def test_concise_confident_names_every_option_out_of_range():
    assert option_problems(ConciseConfidentOptions, longest=-1, quantile=1.0, slack=-1) == [
        "longest: found -1, expected at least 0",
        "quantile: found 1.0, expected from 0 to below 1",
        "slack: found -1, expected at least 0",
    ]
