"""Verbs of the selector: carried out in order, or refused with nothing changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.coordinator import snapshot
from pipeline.coordinator.events import (
    AbortLegs,
    CancelReward,
    RequestReward,
    RewardMissing,
    TrainGroup,
)
from pipeline.coordinator.groups import GroupState, TrajectoryState
from pipeline.coordinator.state import PluginFault
from pipeline.plugins.actions import (
    Abort,
    Advantages,
    Allocation,
    AnyAction,
    Defer,
    Drop,
    Enough,
    Finalize,
    NoSignal,
    Park,
    Sample,
    Stop,
)
from pipeline.plugins.interfaces import Rewarded
from pipeline.plugins.views import BudgetView, EndedView, PromptView
from tests.pipeline.coordinator.bench import Bench, Scripted, only, placed


@pytest.fixture
def bench() -> Bench:
    """Group 0 with members 0 (finished), 1 (running, 3 tokens) and 2 (running, none)."""
    bench = Bench(tries=30.0)
    bench.begin()
    bench.tokens(0, 4, "stop")
    bench.tokens(1, 3)
    return bench


def picture(bench: Bench) -> Any:
    """Everything that a verb could change."""
    return msgspec.to_builtins(
        [list(bench.core.groups.values()), bench.core.ledger, list(bench.core.trajectories)]
    )


WRONG: list[tuple[AnyAction, str]] = [
    (Sample(0), "at least one more"),
    (Sample(2000), "at most 1024"),
    (Abort((9,)), "unknown or named twice"),
    (Abort((1, 1)), "unknown or named twice"),
    (Stop((0,)), "only unended members that hold tokens"),
    (Stop((2,)), "only unended members that hold tokens"),
    (Stop((1, 0)), "only unended members that hold tokens"),
    (Stop((9,)), "unknown or named twice"),
    (Park((0,)), "only members that run or wait"),
    (Park((1, 0)), "only members that run or wait"),
    (Park((1,), until="tomorrow"), "'slot' or 'published'"),
    (Finalize((0,)), "an advantage needs two"),
    (Finalize((0, 1)), "has not ended; Stop it first"),
    (Finalize((0, 0)), "unknown or named twice"),
    (Finalize((0, 9)), "unknown or named twice"),
    ("finalize", "no action of a selector"),  # type: ignore[list-item]
]


@pytest.mark.parametrize("action,why", WRONG, ids=lambda v: str(v))
def test_a_wrong_verb_is_refused_by_name_and_changes_nothing(
    bench: Bench, action: AnyAction, why: str
) -> None:
    before = picture(bench)
    with pytest.raises(PluginFault) as caught:
        bench.ask(0, action)
    text = str(caught.value)
    assert text.startswith(f"selector Scripted, group 0: {action}: ")
    assert why in text
    assert picture(bench) == before


@pytest.mark.parametrize(
    "weights", [(1.0,), (1.0, -1.0), (1.0, float("nan"))], ids=["short", "negative", "nan"]
)
def test_wrong_weights_are_refused_and_change_nothing(
    bench: Bench, weights: tuple[float, ...]
) -> None:
    bench.tokens(1, 2, "stop")
    before = picture(bench)
    with pytest.raises(PluginFault, match="one finite weight of at least 0"):
        bench.ask(0, Finalize((0, 1), weights=weights))
    assert picture(bench) == before


def test_a_verb_after_the_end_of_the_group_is_refused(bench: Bench) -> None:
    with pytest.raises(PluginFault, match="the group is dropped by an earlier action"):
        bench.ask(0, Drop("first"), Sample(1))


def test_an_aborted_member_cannot_be_named_again(bench: Bench) -> None:
    bench.ask(0, Abort((1,)))
    with pytest.raises(PluginFault, match="aborted already"):
        bench.ask(0, Abort((1,)))


def test_sample_adds_candidates_that_are_placed_at_once(bench: Bench) -> None:
    commands = bench.ask(0, Sample(2))
    assert placed(commands) == [(3, 0), (4, 0)]
    view = bench.selector.seen[-1][0]
    assert view.budget == 3
    bench.ask(0)
    assert bench.selector.seen[-1][0].budget == 5


def test_abort_stops_a_running_member_and_counts_its_tokens(bench: Bench) -> None:
    commands = bench.ask(0, Abort((1, 2)))
    assert only(commands, AbortLegs) == [AbortLegs(engine="e0", legs=((1, 0), (2, 0)))]
    assert bench.accounts["aborted"] == 3


def test_abort_of_an_ended_member_takes_it_out_of_the_group(bench: Bench) -> None:
    commands = bench.ask(0, Abort((0,)))
    assert only(commands, CancelReward) == [CancelReward(trajectory=0)]
    assert [m.id for m in bench.group(0).in_order_of_arrival()] == [1, 2]
    assert bench.accounts == {"open": 3, "aborted": 4}


def test_a_candidate_after_an_abort_has_a_seed_that_nobody_had(bench: Bench) -> None:
    commands = bench.ask(0, Abort((0,)), Sample(1))
    group = bench.group(0)
    assert [m.member for m in group.members] == [1, 2, 3]
    assert placed(commands) == [(3, 0)]
    bench.ask(0)
    assert bench.selector.seen[-1][0].budget == 4


def test_stop_keeps_the_member_as_truncated_and_has_it_judged(bench: Bench) -> None:
    commands = bench.ask(0, Stop((1,)))
    assert only(commands, AbortLegs) == [AbortLegs(engine="e0", legs=((1, 0),))]
    [judge] = only(commands, RequestReward)
    assert (judge.trajectory, judge.finish) == (1, "length")
    bench.ask(0)
    view = bench.selector.seen[-1][0]
    assert [(m.id, m.hit_limit) for m in view.truncated] == [(1, False)]


def test_stop_and_finalize_in_one_answer_need_no_round_trip(bench: Bench) -> None:
    bench.ask(0, Stop((1,)), Finalize((0, 1)))
    assert bench.group(0).state is GroupState.CHOSEN
    bench.reward(0, 1.0)
    commands = bench.reward(1, 0.0)
    [train] = only(commands, TrainGroup)
    assert [(m.trajectory, m.truncated, len(m.response)) for m in train.members] == [
        (0, False, 16),
        (1, True, 12),
    ]


def test_a_queued_or_parked_member_with_tokens_can_be_stopped(bench: Bench) -> None:
    bench.ask(0, Park((1,), until="published"), Stop((1,)))
    assert bench.member(1).state is TrajectoryState.TRUNCATED
    assert bench.accounts == {"open": 7}


def test_enough_keeps_the_group_open_until_the_barrier() -> None:
    bench = Bench(need=2, prompts=4)
    bench.begin()
    for trajectory in (0, 1):
        bench.tokens(trajectory, 3, "stop")
    bench.ask(0, Enough())
    bench.ask(0, Enough())  # said twice is said once
    assert bench.group(0).is_open
    assert bench.group(0).enough


def test_finalize_discards_the_running_and_leaves_the_ended_unchosen_as_redundant(
    bench: Bench,
) -> None:
    bench.tokens(1, 2, "stop")
    bench.ask(0, Sample(1))
    bench.tokens(3, 6, "stop")
    commands = bench.ask(0, Finalize((3, 0)))
    assert only(commands, CancelReward) == [CancelReward(trajectory=1)]
    assert only(commands, AbortLegs) == [AbortLegs(engine="e0", legs=((2, 0),))]
    bench.reward(0, 1.0)
    bench.learn(bench.reward(3, 0.0))
    assert bench.fate(0) == ("trained", "")
    assert bench.accounts == {"trained": 10, "redundant": 5}


def test_weights_of_finalize_reach_the_learner_in_the_order_of_ids(bench: Bench) -> None:
    bench.tokens(1, 2, "stop")
    bench.ask(0, Finalize((1, 0), weights=(0.0, 0.5)))
    bench.reward(0, 1.0)
    [train] = only(bench.reward(1, 0.0), TrainGroup)
    assert [(m.trajectory, m.weight, m.advantage) for m in train.members] == [
        (1, 0.0, -0.5),
        (0, 0.5, 0.5),
    ]
    bench.learn([train])
    assert bench.accounts == {"trained": 4, "redundant": 5}


def test_weight_stays_with_its_member_when_another_has_no_reward(bench: Bench) -> None:
    bench.tokens(1, 2, "stop")
    bench.selector.say(0, Finalize((0, 1, 2), weights=(0.1, 0.2, 0.3)))
    bench.tokens(2, 2, "stop")
    bench.reward(0, 1.0)
    bench.handle(RewardMissing(trajectory=1, why="it raised"))
    [train] = only(bench.reward(2, 0.0), TrainGroup)
    assert [(m.trajectory, m.weight) for m in train.members] == [(0, 0.1), (2, 0.3)]


def test_defer_brings_the_prompt_back_with_new_candidates(bench: Bench) -> None:
    bench.ask(0, Defer("later"))
    assert bench.fate(0) == ("deferred", "later")
    [group] = bench.core.groups.values()
    assert (group.id, group.prompt, group.attempt) == (1, 0, 1)
    assert bench.accounts == {"dropped": 4, "aborted": 3}


def test_drop_ends_the_prompt_for_this_epoch_with_its_reason(bench: Bench) -> None:
    bench.ask(0, Drop("too easy"))
    assert bench.fate(0) == ("dropped", "too easy")
    assert [g.prompt for g in bench.core.groups.values()] == [1]
    assert bench.core.ledger.dropped_by == {"too easy": 4}


def test_a_selector_that_leaves_an_ended_group_open_loses_it(bench: Bench) -> None:
    bench.tokens(1, 2, "stop")
    bench.tokens(2, 2, "stop")
    assert bench.fate(0) == ("dropped", "every member has ended and the selector left it open")


def test_a_selector_that_waits_for_rewards_is_asked_until_the_last_one() -> None:
    bench = Bench(Scripted(reward=True))
    bench.begin()
    for trajectory in (0, 1, 2):
        bench.tokens(trajectory, 3, "stop")
    assert 0 in bench.core.groups
    bench.reward(0, 1.0)
    bench.reward(1, 0.0)
    bench.selector.say(0, Finalize((0, 1, 2)))
    bench.reward(2, 0.0)
    assert [e for _, e in bench.selector.seen if isinstance(e, Rewarded)] == [
        Rewarded(i) for i in (0, 1, 2)
    ]
    assert bench.group(0).state is GroupState.SENT


# --- rewards ----------------------------------------------------------------------------------


@pytest.mark.fault("a member has no reward", part="rewards", by="direct")
def test_crashed_reward_leaves_the_group_smaller_never_zero(bench: Bench) -> None:
    """Promise: the group trains without it, with advantages of the others; it never counts as 0.
    Bound: that group.
    """
    bench.tokens(1, 2, "stop")
    bench.selector.say(0, Finalize((0, 1, 2)))
    bench.tokens(2, 2, "stop")
    bench.handle(RewardMissing(trajectory=2, why="it raised"))
    bench.reward(0, 1.0)
    [train] = only(bench.reward(1, 0.0), TrainGroup)
    assert [(m.trajectory, m.reward, m.advantage) for m in train.members] == [
        (0, 1.0, 0.5),
        (1, 0.0, -0.5),
    ]
    bench.learn([train])
    assert bench.accounts == {"trained": 9, "failed": 2}


def test_fewer_than_two_rewards_drop_the_group(bench: Bench) -> None:
    bench.tokens(1, 2, "stop")
    bench.ask(0, Finalize((0, 1)))
    bench.handle(RewardMissing(trajectory=1, why="it raised"))
    bench.reward(0, 1.0)
    assert bench.fate(0) == ("dropped", "fewer than two rewards")


def test_equal_rewards_drop_the_group_and_another_prompt_takes_its_place(bench: Bench) -> None:
    bench.tokens(1, 2, "stop")
    bench.ask(0, Finalize((0, 1)))
    bench.reward(0, 1.0)
    bench.reward(1, 1.0)
    assert bench.fate(0) == ("dropped", "every reward is 1")
    assert [g.prompt for g in bench.core.groups.values()] == [1]


def test_late_reward_of_an_ended_group_is_ignored(bench: Bench) -> None:
    bench.ask(0, Drop("first"))
    before = picture(bench)
    bench.reward(0, 1.0)
    bench.handle(RewardMissing(trajectory=0, why="it raised"))
    assert picture(bench) == before


def test_a_second_reward_of_one_trajectory_is_ignored(bench: Bench) -> None:
    bench.reward(0, 1.0)
    bench.reward(0, 0.0)
    assert bench.member(0).reward == 1.0


def of_version_three() -> Bench:
    bench = Bench(tries=30.0)
    bench.begin(version=3)
    bench.tokens(0, 4, "stop")
    bench.tokens(1, 3)
    return bench


def test_a_stale_chosen_member_drops_the_group() -> None:
    bench = of_version_three()
    bench.tokens(1, 2, version=2)
    bench.tokens(1, 1, "stop")
    bench.ask(0, Finalize((0, 1)))
    bench.reward(0, 1.0)
    bench.reward(1, 0.0)
    assert bench.fate(0) == ("dropped", "stale")
    assert bench.accounts["stale"] == 10


def test_a_stale_member_that_is_not_chosen_hurts_nobody() -> None:
    bench = of_version_three()
    bench.tokens(2, 2, version=2)
    bench.tokens(1, 2, "stop")
    bench.ask(0, Finalize((0, 1)))
    bench.reward(0, 1.0)
    assert len(only(bench.reward(1, 0.0), TrainGroup)) == 1


class Answers:
    """Advantage: whatever the test says."""

    def __init__(self, answer: Advantages | NoSignal) -> None:
        self.answer = answer

    def advantages(self, members: Any) -> Advantages | NoSignal:
        return self.answer


@pytest.mark.parametrize(
    "values,weights",
    [((0.5,), (1.0, 1.0)), ((0.5, float("nan")), (1.0, 1.0)), ((0.5, -0.5), (1.0,)),
     ((0.5, -0.5), (1.0, float("inf")))],
    ids=["few values", "nan value", "few weights", "infinite weight"],
)  # fmt: skip
def test_an_advantage_that_does_not_fit_is_refused_by_name(
    values: tuple[float, ...], weights: tuple[float, ...]
) -> None:
    wrong = Answers(Advantages(values=np.array(values), weights=np.array(weights)))
    bench = Bench(plugins={"advantage": wrong})
    bench.begin()
    bench.tokens(0, 4, "stop")
    bench.tokens(1, 4, "stop")
    bench.ask(0, Finalize((0, 1)))
    bench.reward(0, 1.0)
    with pytest.raises(PluginFault, match="advantage Answers, group 0: "):
        bench.reward(1, 0.0)


def test_a_resume_asks_for_no_reward_that_was_taken_back() -> None:
    bench = Bench(candidates=4)
    bench.begin()
    for trajectory in (0, 1, 2):
        bench.tokens(trajectory, 3, "stop")
    bench.ask(0, Finalize((0, 1)))
    saved = snapshot.take(bench.coordinator)
    again = snapshot.restore(Bench(candidates=4).coordinator, saved, 0.0)
    assert [judge.trajectory for judge in only(again, RequestReward)] == [0, 1]


def test_a_selector_sees_the_mean_logprob_of_a_member_however_long_it_is(bench: Bench) -> None:
    bench.tokens(1, 9)
    bench.tokens(2, 24, "length")
    view, _ = bench.selector.seen[-1]
    shown = {m.id: (m.tokens, m.confidence) for m in view.members}
    assert shown == {0: (4, -0.5), 1: (12, -0.5), 2: (24, -0.5)}


def test_only_what_has_finished_moves_the_statistics_of_confidence_and_length(bench: Bench) -> None:
    """A truncated response is as long as we let it be, and an aborted one as we stopped it."""
    statistics = bench.core.statistics
    bench.tokens(1, 21, "length")
    bench.tokens(2, 6)
    bench.ask(0, Stop((2,)))
    bench.ask(0, Drop(why="enough of it"))
    known = statistics.state()
    assert (known.confidence, known.length) == ([-0.5], [4.0])


class Told:
    """Budget: keeps what it is told of groups that have ended."""

    def __init__(self) -> None:
        self.ended_groups: list[EndedView] = []

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> list[Allocation]:
        return [Allocation(candidates=5, max_tokens=view.max_tokens) for _ in prompts]

    def top_up(self, groups: Any, idle: int) -> list[tuple[int, int]]:
        return []

    def ended(self, group: EndedView) -> None:
        self.ended_groups.append(group)


def test_a_budget_is_told_which_lengths_are_only_lower_bounds() -> None:
    """Finished is whole; truncated, stopped and aborted would have been longer; one that never
    held a token says nothing."""
    budget = Told()
    bench = Bench(plugins={"budget": budget}, tries=30.0)
    bench.begin(slots=4)
    bench.tokens(0, 4, "stop")
    bench.tokens(1, 24, "length")
    bench.tokens(2, 7)
    bench.ask(0, Stop((2,)))
    bench.tokens(3, 5)  # runs until the group is finalized without it
    bench.ask(0, Finalize((0, 1)))
    bench.reward(0, 1.0)
    bench.learn(bench.reward(1, 0.0))
    [told] = budget.ended_groups
    assert (told.lengths, told.censored) == ((4, 24, 7, 5), (False, True, True, True))
