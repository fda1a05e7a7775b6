"""The figures of steps and evaluations: what makes speed comparable."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.coordinator.events import GroupTrained, RewardReady, StepDone
from pipeline.coordinator.groups import Group, Trajectory, TrajectoryState
from pipeline.coordinator.slot_usage import SlotUsage
from pipeline.coordinator.step_metrics import (
    learner_bubble,
    length_metrics,
    token_metrics,
    trained_metrics,
)
from pipeline.plugins.actions import Finalize
from tests.pipeline.coordinator.bench import Bench, Report, Scripted, TrainGroup, only


def group_of(lengths: dict[int, int], chosen: list[int], running: dict[int, int]) -> Group:
    members = [
        Trajectory(id=i, group=0, member=i, max_tokens=99, state=state, tokens=bytearray(4 * held))
        for state, found in (
            (TrajectoryState.FINISHED, lengths),
            (TrajectoryState.ABORTED, running),
        )
        for i, held in found.items()
    ]
    return Group(
        id=0, kind="train", prompt=0, attempt=0, step=0, size=2, max_tokens=99,
        members=members, chosen=chosen,
    )  # fmt: skip


def steps_of(bench: Bench) -> list[dict[str, Any]]:
    return [r.fields for r in only(bench.everything, Report) if r.what == "step"]


# --- pure ---------------------------------------------------------------------------------------


def test_lengths_of_nothing_are_zeros() -> None:
    assert length_metrics([]) == {"tokens_mean": 0.0, "tokens_p95": 0, "tokens_max": 0}
    assert length_metrics(list(range(100)))["tokens_p95"] == 95


def test_depth_is_the_longest_trained_on_over_the_median_of_the_ended() -> None:
    deep = group_of({0: 10, 1: 20, 2: 60}, chosen=[0, 2], running={3: 500})
    shallow = group_of({0: 10, 1: 20, 2: 60}, chosen=[0, 1], running={})
    assert trained_metrics([deep, shallow]) == {
        "depth": (60 / 20 + 20 / 20) / 2,
        "trained_tokens_mean": (10 + 60 + 10 + 20) / 4,
    }
    assert trained_metrics([]) == {}


def test_a_step_without_trained_tokens_has_no_ratio() -> None:
    assert token_metrics(30, 20)["sampled_per_trained"] == 1.5
    assert token_metrics(30, 0)["sampled_per_trained"] is None


def test_the_learner_bubble_is_what_is_left_of_the_step_mean_over_ranks() -> None:
    first = {"backward_s": 0.7, "ahead_s": 0.3, "optimizer_s": 0.5, "publish_s": 0.5, "loss": 9.0}
    second = {"backward_s": 3.0, "optimizer_s": 0.5}
    found = learner_bubble([first, second], seconds=4.0)
    assert found == {"bubble_learner": pytest.approx(1 - (2.0 + 3.5) / 8.0)}
    assert learner_bubble([], seconds=4.0) == {}


# --- slots over time ----------------------------------------------------------------------------


def test_the_bubble_counts_idle_slots_from_the_first_placement_to_the_last_end() -> None:
    seen = SlotUsage()
    seen.change(0.0, slots=2)
    seen.open(5.0)
    seen.change(10.0, busy=2)
    seen.change(11.0, busy=-1)
    seen.change(14.0, busy=-1)
    assert seen.metrics(20.0) == {
        "generation_s": 4.0,
        "slots_used": 2,
        "bubble_engine": pytest.approx(1 - (2 * 1 + 1 * 3) / (2 * 4)),
    }


def test_an_idle_stretch_between_two_placements_is_a_bubble() -> None:
    seen = SlotUsage()
    seen.change(0.0, slots=1)
    seen.open(0.0)
    for start in (1.0, 4.0):
        seen.change(start, busy=1)
        seen.change(start + 1.0, busy=-1)
    assert seen.metrics(9.0) == {"generation_s": 4.0, "slots_used": 1, "bubble_engine": 0.5}


def test_a_lost_engine_takes_its_slots_and_legs_along() -> None:
    seen = SlotUsage()
    seen.change(0.0, slots=4)
    seen.change(0.0, slots=4)
    seen.open(0.0)
    seen.change(0.0, busy=8)
    seen.change(1.0, busy=-4, slots=-4)
    seen.change(3.0, busy=-4)
    assert seen.metrics(3.0) == {"generation_s": 3.0, "slots_used": 8, "bubble_engine": 0.0}


def test_legs_that_run_across_the_steps_border_count_in_both() -> None:
    seen = SlotUsage()
    seen.change(0.0, slots=2)
    seen.open(0.0)
    seen.change(1.0, busy=2)
    seen.change(2.0, busy=-1)
    assert seen.metrics(3.0) == {"generation_s": 2.0, "slots_used": 2, "bubble_engine": 0.25}
    seen.open(4.0)
    seen.change(5.0, busy=1)
    assert seen.metrics(6.0) == {"generation_s": 2.0, "slots_used": 2, "bubble_engine": 0.25}


def test_slots_that_nothing_could_have_filled_are_no_bubble() -> None:
    seen = SlotUsage()
    seen.change(0.0, slots=128)
    seen.open(0.0)
    seen.change(0.0, busy=16)
    seen.change(1.0, busy=-8)
    seen.change(2.0, busy=-8)
    # 16 requests on 128 slots: of 16 slots for two seconds, a quarter was idle
    assert seen.metrics(9.0) == {"generation_s": 2.0, "slots_used": 16, "bubble_engine": 0.25}


def test_a_step_without_any_placement_has_no_bubble() -> None:
    seen = SlotUsage()
    seen.change(0.0, slots=2)
    seen.open(0.0)
    assert seen.metrics(3.0) == {"generation_s": 0.0}


def test_a_step_that_a_checkpoint_held_whole_has_no_bubble_and_no_fault() -> None:
    """After a resume no step is opened: the one at hand goes on, perhaps without any placement."""
    resumed = SlotUsage()
    resumed.change(1.0, slots=2)
    assert resumed.metrics(3.0) == {"generation_s": 0.0}
    resumed.change(4.0, busy=1)
    resumed.change(6.0, busy=-1)
    assert resumed.metrics(9.0) == {"generation_s": 2.0, "slots_used": 1, "bubble_engine": 0.0}


# --- in a run -----------------------------------------------------------------------------------


def test_a_step_reports_tokens_depth_and_bubbles_of_itself_alone() -> None:
    bench = Bench(steps=2, candidates=3)
    bench.begin(slots=3)
    for step in range(2):
        group = next(iter(bench.core.groups))
        short, long, other = [m.id for m in bench.group(group).members]
        bench.tokens(short, 2, "stop")
        bench.tokens(long, 6, "stop")
        bench.tokens(other, 4)
        bench.ask(group, Finalize((short, long)))
        bench.tokens(other, 0, "abort")
        bench.reward(short, 1.0)
        commands = bench.reward(long, 0.0)
        [train] = only(commands, TrainGroup)
        bench.handle(GroupTrained(rank=0, group=train.group, tokens=8.0))
        metrics = {"backward_s": 0.01, "optimizer_s": 0.02}
        bench.handle(StepDone(rank=0, step=step, version=step + 1, metrics=metrics))
        if step == 0:
            bench.serve()
    for found in steps_of(bench):
        assert (found["tokens_sampled"], found["tokens_trained"]) == (12, 8)
        assert found["sampled_per_trained"] == 1.5
        assert found["depth"] == 6 / 4
        assert found["trained_tokens_mean"] == 4.0
        assert 0.0 < found["bubble_engine"] < 1.0
        assert 0.0 < found["generation_s"] < found["seconds"]
        assert found["bubble_learner"] == pytest.approx(1 - 0.03 / found["seconds"])


def test_slots_in_use_are_those_that_hold_a_leg_whatever_happens_to_engines() -> None:
    bench = Bench(candidates=6, need=2, prompts=9)
    bench.begin(engines=2, slots=4)
    seen = bench.coordinator.scheduler.slot_usage

    def held() -> tuple[int, int]:
        engines = bench.coordinator.scheduler.engines.values()
        return sum(len(e.legs) for e in engines), sum(e.slots for e in engines)

    assert (seen.busy, seen.slots) == held() == (8, 8)
    bench.join("e1", slots=3)  # a new process of that name
    assert (seen.busy, seen.slots) == held() == (7, 7)
    bench.tokens(0, 3, "stop")
    bench.tokens(0, 3, "stop", leg=0, offset=0)  # told twice
    assert (seen.busy, seen.slots) == held() == (7, 7)
    assert bench.group(0).is_open


def test_an_evaluation_tells_accuracy_by_kind_of_prompt() -> None:
    tags = ("terms=2", "terms=6", "terms=6")
    bench = Bench(held_out=3, held_out_tags=tags, eval_samples=1, eval_every=1, steps=0)
    bench.begin()
    for group, value in zip(list(bench.core.groups.values()), (1.0, 1.0, 0.0), strict=True):
        [member] = group.members
        bench.tokens(member.id, 2, "stop")
        bench.handle(RewardReady(trajectory=member.id, value=value))
    [found] = [r.fields for r in only(bench.everything, Report) if r.what == "eval"]
    assert found["by_tag"] == {"terms=2": 1.0, "terms=6": 0.5}
    assert found["tokens_by_tag"] == {"terms=2": 2.0, "terms=6": 2.0}
    assert found["accuracy"] == pytest.approx(2 / 3)


def trained_step(rewards: tuple[float, float], *reports: GroupTrained) -> dict[str, Any]:
    """The record of a step that trained on as many groups as ranks report of."""
    bench = Bench(need=len(reports))
    bench.begin(slots=20)
    for group in list(bench.core.groups):
        members = [m.id for m in bench.group(group).members][:2]
        for trajectory, value in zip(members, rewards, strict=True):
            bench.tokens(trajectory, 3, "stop")
            bench.reward(trajectory, value)
        bench.ask(group, Finalize(tuple(members)))
    for report in reports:
        bench.handle(report)
    bench.handle(StepDone(rank=0, step=0, version=1, metrics={"grad_norm": 0.7}))
    [found] = steps_of(bench)
    return found


def test_rewards_below_zero_have_a_mean_below_zero() -> None:
    found = trained_step((-1.0, -0.5), GroupTrained(rank=0, group=0, tokens=6.0))
    assert found["reward"] == -0.75


@pytest.mark.parametrize("alarm", [0.0, 0.5])
def test_a_step_in_which_selection_moved_nothing_rings_no_alarm(alarm: float) -> None:
    bench = Bench(audit_alarm=alarm)
    bench.begin()
    bench.learn(bench.train_one(0))
    assert len(steps_of(bench)) == 1
    assert bench.warnings() == []


def test_a_step_counts_its_groups_by_how_they_ended_and_why() -> None:
    bench = Bench(need=2, prompts=9)
    bench.begin(slots=20)
    for group, rewards in ((0, (1.0, 0.0)), (1, (1.0, 1.0)), (2, (0.0, 0.0)), (3, (0.0, 1.0))):
        members = [m.id for m in bench.group(group).members][:2]
        for trajectory, value in zip(members, rewards, strict=True):
            bench.tokens(trajectory, 3, "stop")
            bench.reward(trajectory, value)
        bench.learn(bench.ask(group, Finalize(tuple(members))))
    [found] = steps_of(bench)
    assert found["groups"] == {
        "trained": 2,
        "dropped: every reward is 1": 1,
        "dropped: every reward is 0": 1,
    }
    assert (found["opened"], found["samples"], found["reward"]) == (4, 8, 0.5)


def test_learner_metrics_are_sums_over_all_groups_each_by_its_own_count() -> None:
    """The loss counts every trained token, the others those that went through the model."""
    first = {"loss": 3.0, "entropy": 8.0, "clipped": -2.0, "ratio_max": 1.5, "computed": 6.0}
    second = {"loss": -1.0, "entropy": 4.0, "clipped": 6.0, "ratio_max": 1.25, "computed": 2.0}
    found = trained_step(
        (1.0, 0.0),
        GroupTrained(rank=0, group=0, tokens=6.0, metrics=first),
        GroupTrained(rank=0, group=1, tokens=10.0, metrics=second),
    )
    assert found["learner"] == {
        "loss": 2.0 / 16,
        "entropy": 12.0 / 8,
        "clipped": 4.0 / 8,
        "ratio_max": 1.5,
        "computed_share": 8 / 16,
        "grad_norm": 0.7,
    }


def test_learner_metrics_of_members_that_all_went_through_share_one_count() -> None:
    metrics = {"loss": 3.0, "entropy": 6.0}  # a rank that does not say what it computed
    found = trained_step((1.0, 0.0), GroupTrained(rank=0, group=0, tokens=12.0, metrics=metrics))
    assert found["learner"] == {
        "loss": 0.25, "entropy": 0.5, "computed_share": 1.0, "grad_norm": 0.7,
    }  # fmt: skip


def test_a_step_whose_members_were_all_silent_has_a_share_of_nothing_and_no_division() -> None:
    metrics = {"computed": 0.0, "loss": 0.0, "entropy": 0.0}
    found = trained_step((1.0, 0.0), GroupTrained(rank=0, group=0, tokens=6.0, metrics=metrics))
    assert found["learner"] == {
        "loss": 0.0, "entropy": 0.0, "computed_share": 0.0, "grad_norm": 0.7,
    }  # fmt: skip


@pytest.mark.parametrize("parts, warnings", [({}, 1), ({"step_1": 1.0}, 0)])
def test_a_selector_whose_parts_no_reward_has_is_told_of_once(
    parts: dict[str, float], warnings: int
) -> None:
    """Else it would never act, and nothing would show that."""
    bench = Bench(Scripted(reward=True, parts=("step_1",)), steps=2)
    bench.begin()
    for group in (0, 1):
        members = [m.id for m in bench.core.groups[group].members][:2]
        for member in members:
            bench.tokens(member, 3, "stop")
        bench.handle(RewardReady(trajectory=members[0], value=1.0, parts=parts))
        bench.selector.say(group, Finalize(tuple(members)))
        commands = bench.handle(RewardReady(trajectory=members[1], value=0.0, parts=parts))
        bench.learn(commands)
        bench.serve()
    assert bench.core.step == 2
    found = [text for text in bench.warnings() if "Scripted" in text]
    assert len(found) == warnings
    assert all("part step_1, and none of 2 rewards has it" in text for text in found)
