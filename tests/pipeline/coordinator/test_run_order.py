"""The order of a run around its steps: halts, checkpoints, resumes, evaluation."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import RunPhase
from pipeline.coordinator.events import (
    Checkpoint,
    Checkpointed,
    Generate,
    GroupTrained,
    Halt,
    LearnerJoined,
    LoadWeights,
    Published,
    Report,
    RequestReward,
    RewardMissing,
    RewardReady,
    Shutdown,
    StepDone,
    Tick,
    TrainGroup,
)
from pipeline.coordinator.groups import GroupState
from pipeline.plugins.actions import Finalize, Plan
from pipeline.plugins.prompt_orders.sequential import Sequential
from pipeline.plugins.views import EvalSet, PlanView
from pipeline.plugins.walk import OrderOptions
from tests.pipeline.coordinator.bench import Bench, only


def finish_of(bench: Bench, rank: int = 0) -> list[Any]:
    step = bench.core.step
    return bench.handle(StepDone(rank=rank, step=step, version=step + 1))


# --- halt and checkpoints ---------------------------------------------------------------------


class Nothing:
    """Prompts: there are none."""

    def plan(self, view: PlanView) -> Plan:
        return Plan(())


def halted(bench: Bench, error: str = "") -> list[Any]:
    return bench.handle(Halt(error=error))


def test_halt_ends_legs_at_the_tokens_held_cuts_and_ends() -> None:
    bench = Bench()
    bench.begin()
    bench.tokens(0, 4)
    commands = halted(bench, "disk full")
    assert [type(c) for c in commands if isinstance(c, Checkpoint | Generate)] == [Checkpoint]
    assert bench.over is None
    bench.tokens(0, 2, "abort", leg=0, offset=4)
    bench.handle(Checkpointed(step=0))
    assert bench.over == Shutdown(error="disk full")
    assert bench.accounts["open"] == 4


def test_halt_inside_the_optimizer_step_waits_for_it() -> None:
    bench = Bench(steps=5)
    bench.begin()
    bench.train_one(0)
    bench.handle(GroupTrained(rank=0, group=0, tokens=7.0))
    assert only(halted(bench), Checkpoint) == []
    [cut] = only(finish_of(bench), Checkpoint)
    assert (cut.step, cut.version) == (1, 1)
    bench.handle(Checkpointed(step=1))
    assert bench.over == Shutdown(error="")


def test_halt_while_another_checkpoint_is_written_cuts_once_more_after_it() -> None:
    bench = Bench(steps=5, checkpoint_every=1)
    bench.begin()
    bench.learn(bench.train_one(0))
    assert len(only(bench.everything, Checkpoint)) == 1
    bench.serve()
    assert only(halted(bench), Checkpoint) == []
    assert len(only(bench.handle(Checkpointed(step=1)), Checkpoint)) == 1
    assert bench.over is None
    bench.handle(Checkpointed(step=1))
    assert bench.over == Shutdown(error="")


def test_halt_before_everything_has_joined_ends_without_a_cut() -> None:
    bench = Bench(ranks=2)
    bench.handle(LearnerJoined(rank=0))
    bench.handle(Published(version=0))
    commands = halted(bench, "learner rank 1 is missing")
    assert only(commands, Checkpoint) == [], "rank 1 would never write its part"
    assert bench.over == Shutdown(error="learner rank 1 is missing")


def test_a_second_halt_changes_nothing() -> None:
    bench = Bench()
    bench.begin()
    halted(bench)
    assert halted(bench, "late") == []


def test_checkpoints_follow_every_nth_step_and_the_last() -> None:
    bench = Bench(steps=3, checkpoint_every=2)
    bench.begin(slots=30)
    for _ in range(3):
        bench.learn(bench.train_one(next(iter(bench.core.groups))))
        for cut in only(bench.everything[-6:], Checkpoint):
            bench.handle(Checkpointed(step=cut.step))
        bench.serve()
    assert [c.step for c in only(bench.everything, Checkpoint)] == [2, 3]
    assert bench.over == Shutdown(error="")


def test_a_cut_never_begins_while_another_is_written_and_the_last_one_is_not_left_out() -> None:
    bench = Bench(steps=3, checkpoint_every=1)
    bench.begin(slots=30)
    for _ in range(3):
        bench.learn(bench.train_one(next(iter(bench.core.groups))))
        bench.serve()
    assert [c.step for c in only(bench.everything, Checkpoint)] == [1]
    assert "no checkpoint at step 2: the one before is still being written" in bench.warnings()
    assert bench.over is None
    [last] = only(bench.handle(Checkpointed(step=1)), Checkpoint)
    assert last.step == 3
    bench.handle(Checkpointed(step=3))
    assert bench.over == Shutdown(error="")


def test_a_last_step_that_is_empty_is_in_a_checkpoint_too() -> None:
    bench = Bench(steps=1, tries=1.0, checkpoint_every=5)
    bench.begin()
    for trajectory in (0, 1):
        bench.tokens(trajectory, 3, "stop")
    bench.ask(0, Finalize((0, 1)))
    for trajectory in (0, 1):
        bench.reward(trajectory, 1.0)  # equal: nothing to learn from
    [cut] = only(bench.everything, Checkpoint)
    assert cut.step == 1
    bench.handle(Checkpointed(step=1))
    assert bench.over == Shutdown(error="")


@pytest.mark.fault("the data of a run is at its end before its steps are", part="configuration",
                   by="direct")  # fmt: skip
def test_a_run_ends_with_its_data() -> None:
    """Promise: after the last step that had a prompt it is done, with a checkpoint, and says why;
    no empty step follows. Bound: at that step.
    """
    order = Sequential(OrderOptions(epochs=1))
    bench = Bench(plugins={"prompt_order": order}, prompts=2, steps=9, checkpoint_every=5)
    bench.begin()
    for group in (0, 1):
        bench.learn(bench.train_one(group))
        bench.serve()
    assert [r.fields["step"] for r in only(bench.everything, Report) if r.what == "step"] == [0, 1]
    assert any("the data is at its end" in text and "after 2 of 9 steps" in text
               for text in bench.warnings())  # fmt: skip
    [cut] = only(bench.everything, Checkpoint)
    assert cut.step == 2
    bench.handle(Checkpointed(step=2))
    assert bench.over == Shutdown(error="")
    assert not bench.coordinator.unfinished


def test_a_run_without_a_single_prompt_ends_at_once() -> None:
    bench = Bench(plugins={"prompt_order": Nothing()}, steps=3, checkpoint_every=5)
    bench.begin()
    assert bench.over == Shutdown(error="")
    assert bench.core.step == 0


def test_a_checkpoint_that_fails_is_a_warning_and_the_run_goes_on() -> None:
    bench = Bench(steps=2, checkpoint_every=1)
    bench.begin(slots=30)
    bench.learn(bench.train_one(0))
    bench.handle(Checkpointed(step=1, error="no space left"))
    assert "no checkpoint at step 1: no space left" in bench.warnings()
    assert bench.coordinator.run.phase is RunPhase.TRAINING


def test_rewards_that_come_before_a_resumed_learner_make_no_group_stale() -> None:
    bench = Bench()
    bench.begin(version=3)
    bench.tokens(0, 3, "stop")
    bench.tokens(1, 4, "stop")
    bench.ask(0, Finalize((0, 1)))
    halted(bench)
    saved = snapshot.take(bench.coordinator)

    again = Bench()
    asked = snapshot.restore(again.coordinator, saved, 0.0)
    assert [c.trajectory for c in only(asked, RequestReward)] == [0, 1]
    for trajectory in (0, 1):
        again.coordinator.handle(RewardReady(trajectory=trajectory, value=float(trajectory)), 1.0)
    assert again.group(0).state is GroupState.CHOSEN
    commands = again.begin(version=3)
    assert [t.group for t in only(commands, TrainGroup)] == [0]


def test_the_start_of_a_resumed_run_is_no_part_of_its_open_steps_time() -> None:
    bench = Bench(need=2)
    bench.begin(slots=20)
    bench.now += 3.0
    bench.train_one(0)
    halted(bench)
    saved = snapshot.take(bench.coordinator)
    worked_s = bench.core.now - bench.core.stats.since
    again = Bench(need=2)
    snapshot.restore(again.coordinator, saved, 0.0)
    again.now = 60.0  # a minute of imports
    again.begin(slots=20)
    assert again.core.now - again.core.stats.since == pytest.approx(worked_s, abs=0.1)


def test_taken_groups_of_a_cut_are_trained_again_after_it() -> None:
    bench = Bench(need=2)
    bench.begin(slots=20)
    bench.train_one(0)
    halted(bench)
    again = Bench(need=2)
    snapshot.restore(again.coordinator, snapshot.take(bench.coordinator), 0.0)
    assert again.group(0).state is GroupState.READY
    assert [t.group for t in only(again.begin(slots=20), TrainGroup)] == [0]


def test_a_state_that_does_not_add_up_is_refused() -> None:
    bench = Bench()
    bench.begin()
    bench.coordinator.group_manager.issued += 1
    with pytest.raises(snapshot.SnapshotError, match="2 prompts issued"):
        snapshot.take(bench.coordinator)


# --- evaluation -------------------------------------------------------------------------------


def evaluate(bench: Bench, value: float) -> None:
    for group in [g for g in bench.core.groups.values() if g.kind == "eval"]:
        for member in list(group.members):
            bench.tokens(member.id, 4, "stop")
            bench.reward(member.id, value)


def evaluations(bench: Bench) -> list[dict[str, Any]]:
    return [r.fields for r in only(bench.everything, Report) if r.what == "eval"]


def test_the_run_is_evaluated_before_the_first_and_after_the_last_step() -> None:
    bench = Bench(held_out=2, eval_samples=2, eval_every=10)
    bench.begin(slots=20)
    assert bench.coordinator.run.phase is RunPhase.EVALUATING
    assert {c.kind for c in only(bench.everything, Generate)} == {"eval"}
    evaluate(bench, 0.0)
    group = next(iter(bench.core.groups))
    assert bench.group(group).kind == "train"
    bench.learn(bench.train_one(group))
    assert bench.over is None
    bench.serve()
    evaluate(bench, 1.0)
    assert [(e["step"], e["accuracy"], e["samples"]) for e in evaluations(bench)] == [
        (0, 0.0, 4),
        (1, 1.0, 4),
    ]
    assert bench.over == Shutdown(error="")
    assert bench.accounts["eval"] == 32


def test_a_missing_reward_of_an_evaluation_is_counted_not_zero() -> None:
    bench = Bench(held_out=1, eval_samples=2, eval_every=1, steps=0)
    bench.begin()
    bench.tokens(0, 4, "stop")
    bench.tokens(1, 24, "length")
    bench.reward(0, 1.0)
    bench.coordinator.selection.rewarded(1, None, {}, "it raised")
    bench.handle(Tick())
    [found] = evaluations(bench)
    assert (found["accuracy"], found["missing"], found["truncated"]) == (1.0, 1, 0.5)


def test_a_run_of_zero_steps_only_evaluates() -> None:
    bench = Bench(held_out=1, eval_samples=1, eval_every=1, steps=0)
    bench.begin()
    evaluate(bench, 1.0)
    assert bench.over == Shutdown(error="")
    assert not only(bench.everything, TrainGroup)


def alone(**changes: Any) -> Bench:
    """A run that trains nothing, with one engine."""
    bench = Bench(steps=0, ranks=0, held_out=1, eval_every=1, eval_samples=1, **changes)
    bench.join("e0")
    return bench


def test_a_run_of_zero_steps_waits_for_no_learner_and_engines_keep_their_weights() -> None:
    bench = alone()
    assert [load.version for load in only(bench.everything, LoadWeights)] == [0]
    evaluate(bench, 1.0)
    assert bench.over == Shutdown(error="")
    assert bench.coordinator.outcome(0.0)["accuracy_after"] == 1.0


def test_a_halt_without_a_learner_ends_at_once_with_no_checkpoint() -> None:
    bench = alone(checkpoint_every=1)
    assert only(halted(bench, "stopped"), Checkpoint) == []
    assert bench.over == Shutdown(error="stopped")


def test_evaluation_prompts_are_sampled_anew_at_every_step() -> None:
    bench = Bench(held_out=1, eval_samples=1, eval_every=1)
    bench.begin(slots=20)
    evaluate(bench, 1.0)
    bench.learn(bench.train_one(next(iter(bench.core.groups))))
    bench.serve()
    seeds = [c.seed for c in only(bench.everything, Generate) if c.kind == "eval"]
    assert len(seeds) == len(set(seeds)) == 2


def test_halt_in_an_evaluation_leaves_it_out_and_it_begins_again() -> None:
    bench = Bench(held_out=1, eval_samples=2, eval_every=1)
    bench.begin()
    bench.tokens(0, 4, "stop")
    halted(bench)
    saved = snapshot.take(bench.coordinator)
    assert saved.groups == []
    assert saved.ledger.accounts["eval"] == 4
    again = Bench(held_out=1, eval_samples=2, eval_every=1)
    snapshot.restore(again.coordinator, saved, 0.0)
    commands = again.begin()
    assert [c.kind for c in only(commands, Generate)] == ["eval", "eval"]


def test_responses_of_an_evaluation_may_be_longer_than_those_of_training() -> None:
    bench = Bench(held_out=1, eval_samples=1, eval_every=1, eval_max_tokens=90, max_tokens=24)
    bench.begin(slots=20)
    evaluate(bench, 1.0)
    asked = {c.kind: c.max_tokens for c in only(bench.everything, Generate)}
    assert asked == {"eval": 90, "train": 24}


def test_a_response_that_ended_at_a_stop_text_is_finished_not_cut() -> None:
    bench = Bench(held_out=1, eval_samples=1, eval_every=1, steps=0)
    bench.begin()
    made = bench.chunk(0, 4, "stop")
    made[1][-1] = 9  # no stop token: the engine found a text
    bench.handle(bench.frame(made))
    bench.reward(0, 1.0)
    [found] = evaluations(bench)
    assert (found["truncated"], found["tokens_mean"]) == (0.0, 4.0)


AIME = EvalSet(name="aime", first=1, count=2, samples=2, k=(1, 2))
SETS = (EvalSet(name="", first=0, count=1, samples=1, k=(1,)), AIME)


def test_each_set_has_its_own_samples_figures_and_greedy_ones() -> None:
    bench = Bench(steps=0, held_out=3, eval_every=1, eval_sets=SETS, eval_greedy=True)
    places = only(bench.begin(slots=20), Generate)
    assert [(p.prompt, p.greedy) for p in places] == [
        (0, False), (0, True),
        (1, False), (1, False), (1, True), (2, False), (2, False), (2, True),
    ]  # fmt: skip
    rewards = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.5]
    for place, value in zip(places, rewards, strict=True):
        bench.tokens(place.trajectory, 2, "stop")
        bench.reward(place.trajectory, value)
    [found] = evaluations(bench)
    assert (found["accuracy"], found["pass@1"], found["greedy"]) == (1.0, 1.0, 0.0)
    aime = found["sets"]["aime"]
    assert (aime["accuracy"], aime["pass@1"], aime["pass@2"]) == (0.25, 0.25, 0.5)
    assert aime["reward"] == aime["accuracy"], "every sampled reward is 0 or 1"
    assert (aime["greedy"], aime["samples"], found["other_version"]) == (0.75, 4, 0)
    assert bench.over is not None


def test_a_response_counts_as_correct_from_a_reward_on_and_missing_ones_do_not_count() -> None:
    sets = (msgspec.structs.replace(AIME, first=0, count=2, samples=3, k=(2,)),)
    bench = Bench(steps=0, held_out=2, eval_every=1, eval_sets=sets, eval_correct=0.5)
    bench.begin(slots=20)
    for trajectory, value in enumerate((0.5, 0.4, 0.0, 0.9, None, None)):
        bench.tokens(trajectory, 2, "stop")
        if value is None:
            bench.handle(RewardMissing(trajectory=trajectory, why="it failed"))
        else:
            bench.reward(trajectory, value)
    [found] = evaluations(bench)
    assert found["sets"]["aime"]["pass@2"] == pytest.approx(2 / 3), "the second has one sample left"
    assert (found["reward"], found["missing"]) == (0.45, 2), "the first set stands for the run"
    assert found["accuracy"] == 0.5, "0.5 and 0.9 of four"


def test_the_best_step_gets_a_checkpoint_after_the_one_that_is_being_written() -> None:
    bench = Bench(steps=4, held_out=1, eval_every=1, eval_samples=1, eval_best="reward")
    bench.begin(slots=30)
    evaluate(bench, 1.0)  # nothing is trained yet: never the best
    cuts: list[int] = []
    for value in (0.25, 0.5, 0.5, 0.75):
        group = next(g for g in bench.core.groups.values() if g.kind == "train")
        bench.learn(bench.train_one(group.id))
        bench.serve()
        if value == 0.5 and len(cuts) == 1:  # the disk is slow
            evaluate(bench, value)
            assert bench.coordinator.run.phase is RunPhase.EVALUATING
            bench.handle(Checkpointed(step=1))
        else:
            evaluate(bench, value)
        new = [c.step for c in only(bench.everything, Checkpoint)][len(cuts) :]
        cuts += new
        if new and new != [1]:
            bench.handle(Checkpointed(step=new[-1]))
    assert cuts == [1, 2, 4], "of equal ones the earlier is kept"
    assert bench.coordinator.evaluations.ranked() == [4, 2, 3, 1]
    assert bench.over == Shutdown(error="")


def test_parts_of_rewards_are_figures_of_the_step_and_survive_a_resume() -> None:
    bench = Bench(steps=2)
    bench.begin()
    first, second = [m.id for m in bench.core.groups[0].members][:2]
    for trajectory, parts in ((first, {"math": 1.0, "brief": 0.5}), (second, {"math": 0.0})):
        bench.tokens(trajectory, 3, "stop")
        value = sum(parts.values())
        bench.handle(RewardReady(trajectory=trajectory, value=value, parts=parts))
    saved = snapshot.take(bench.coordinator)
    assert saved.stats.parts == {"math": (1.0, 2), "brief": (0.5, 1)}
    other = Bench(steps=2)
    snapshot.restore(other.coordinator, saved, 0.0)
    assert other.core.stats.parts == saved.stats.parts
    bench.learn(bench.ask(0, Finalize((first, second))))
    [step] = [r.fields for r in only(bench.everything, Report) if r.what == "step"]
    assert step["parts"] == {"brief": 0.5, "math": 0.5}


def test_a_leg_after_a_resume_has_a_seed_that_the_one_before_had_not() -> None:
    """With the number of the leg that was cut, its tokens would be drawn again, from the same
    numbers, after a prefix that already holds some of them."""
    bench = Bench(candidates=2)
    before = only(bench.begin(slots=1), Generate)  # the second member has no slot yet
    bench.tokens(0, 3)
    saved = snapshot.take(bench.coordinator)  # written while the leg runs, without a halt
    again = Bench(candidates=2)
    snapshot.restore(again.coordinator, saved, 0.0)
    resumed = only(again.begin(), Generate)
    assert [(c.trajectory, len(c.prefix) // 4) for c in resumed] == [(0, 3), (1, 0)]
    assert resumed[0].seed not in [c.seed for c in before]
    assert resumed[0].leg > before[0].leg, "chunks of the leg that was cut would count"


def test_responses_of_another_version_than_the_evaluated_one_are_counted() -> None:
    """Whole or in part; a member that was given up before its first token is of none."""
    bench = Bench(held_out=2, eval_samples=2, eval_every=1, steps=0)
    bench.begin(version=3)
    for trajectory, version in ((0, 3), (1, 2)):
        bench.tokens(trajectory, 2, version=version)
        bench.tokens(trajectory, 2, "stop")
        bench.reward(trajectory, 1.0)
    bench.tokens(2, 24, "length", version=1)
    bench.reward(2, 1.0)
    for _ in range(3):
        bench.tokens(3, 0, "error")
    [found] = evaluations(bench)
    assert (found["version"], found["samples"], found["other_version"]) == (3, 3, 2)


def test_the_hidden_share_of_logprobs_is_of_the_seconds_of_all_steps() -> None:
    bench = Bench(steps=3)
    bench.begin()
    assert bench.coordinator.steps.report.hidden_share is None, "nothing was computed ahead"
    for step, (whole_s, hidden_s) in enumerate(((4.0, 1.0), (2.0, 2.0), (0.0, 0.0))):
        group = next(iter(bench.core.groups))
        for train in only(bench.train_one(group), TrainGroup):
            bench.handle(GroupTrained(rank=0, group=train.group, tokens=7.0))
        metrics = {"logprob_s": whole_s, "logprob_hidden_s": hidden_s} if whole_s else {}
        bench.handle(StepDone(rank=0, step=step, version=step + 1, metrics=metrics))
        bench.serve()
    assert bench.over is not None
    assert bench.coordinator.outcome(1.0)["logprob_hidden_share"] == 0.5
