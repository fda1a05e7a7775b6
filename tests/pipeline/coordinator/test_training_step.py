"""Steps: prompts in, the barrier, training, failures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from pipeline.coordinator.coordinator import RunPhase
from pipeline.coordinator.events import (
    Checkpoint,
    Checkpointed,
    CloseStep,
    EngineLost,
    ForgetGroup,
    GroupFailed,
    GroupTrained,
    LearnerLost,
    Shutdown,
    StepDone,
    StepSkipped,
    Tick,
    TrainGroup,
)
from pipeline.coordinator.groups import GroupState
from pipeline.coordinator.state import PluginFault
from pipeline.plugins.actions import (
    Allocation,
    AnyAction,
    BatchAction,
    Close,
    Enough,
    Finalize,
    Park,
    Plan,
    Relax,
    Take,
)
from pipeline.plugins.interfaces import Barrier, Relaxed, SelectorEvent, Wants, WeightsPublished
from pipeline.plugins.views import BatchView, BudgetView, GroupView, PlanView, PromptView
from tests.pipeline.coordinator.bench import Bench, Candidates, Scripted, only


def finish_of(bench: Bench, rank: int = 0) -> list[Any]:
    step = bench.core.step
    return bench.handle(StepDone(rank=rank, step=step, version=step + 1))


# --- a step that goes well --------------------------------------------------------------------


def test_a_step_trains_what_it_took_and_the_run_ends() -> None:
    bench = Bench(need=2)
    bench.begin()
    first, second = bench.train_one(0), bench.train_one(1)
    assert [t.group for t in only([*first, *second], TrainGroup)] == [0, 1]
    bench.handle(GroupTrained(rank=0, group=0, tokens=7.0))
    [finish] = only(bench.handle(GroupTrained(rank=0, group=1, tokens=7.0)), CloseStep)
    assert (finish.groups, finish.normaliser) == ((0, 1), 14.0)
    assert bench.group(0).state is GroupState.ACCUMULATED, "trained only when the step is done"
    finish_of(bench)
    assert bench.fate(0) == bench.fate(1) == ("trained", "")
    assert bench.over == Shutdown(error="")


def test_the_barrier_asks_open_groups_then_defers_what_stays_open_as_surplus() -> None:
    bench = Bench(need=1, reserve=2, prompts=9)
    bench.begin(slots=20)
    first = bench.group(1).members[0].id
    bench.tokens(first, 2, "stop")
    bench.tokens(first + 1, 2)
    bench.train_one(0)
    asked = [g.id for g, event in bench.selector.seen if isinstance(event, Barrier)]
    assert asked == [1, 2]
    assert bench.fate(1) == bench.fate(2) == ("deferred", "surplus")


def test_a_group_that_is_enough_finalizes_at_the_barrier() -> None:
    bench = Bench(need=2, prompts=9)
    bench.begin()
    for trajectory in (0, 1):
        bench.tokens(trajectory, 3, "stop")
    bench.ask(0, Enough())
    bench.reward(0, 1.0)
    bench.reward(1, 0.0)
    bench.tokens(3, 3, "stop")
    bench.selector.say(0, Finalize((0, 1)))
    bench.selector.say(1, Finalize((3, 4)))
    commands = bench.tokens(4, 3, "stop")
    commands += bench.reward(3, 1.0)
    commands += bench.reward(4, 0.0)
    barrier = [g.id for g, event in bench.selector.seen if isinstance(event, Barrier)]
    assert barrier == [0], "group 0 was enough: with group 1 the step has what it needs"
    assert {t.group for t in only(commands, TrainGroup)} == {0, 1}


def test_dead_groups_are_replaced_while_they_are_still_open() -> None:
    bench = Bench(need=1, prompts=9)
    bench.begin()
    bench.tokens(0, 3, "stop")
    bench.tokens(1, 3, "stop")
    bench.reward(0, 1.0)
    bench.reward(1, 1.0)
    bench.ask(0, Enough())
    assert bench.group(0).state is GroupState.DEAD
    assert bench.group(0).is_open
    assert [g.prompt for g in bench.core.groups.values()] == [0, 1]


def test_a_dead_group_comes_alive_when_a_member_differs() -> None:
    bench = Bench(need=2, prompts=9)
    bench.begin()
    for trajectory in (0, 1):
        bench.tokens(trajectory, 3, "stop")
        bench.reward(trajectory, 1.0)
    bench.ask(0, Enough())
    assert bench.group(0).state is GroupState.DEAD
    bench.tokens(2, 8, "stop")
    bench.reward(2, 0.0)
    assert bench.group(0).state is GroupState.ENOUGH


def test_new_prompts_wait_until_slots_are_idle() -> None:
    bench = Bench(need=2, candidates=3, prompts=9)
    bench.begin(slots=3)
    commands = bench.train_one(0)
    assert [g for g in bench.core.groups if g > 1] == []
    del commands


def test_overlap_off_sends_groups_only_when_generation_has_ended() -> None:
    bench = Bench(need=2, overlap="off")
    bench.begin()
    assert only(bench.train_one(0), TrainGroup) == []
    assert bench.group(0).state is GroupState.TAKEN
    commands = bench.train_one(1)
    assert [t.group for t in only(commands, TrainGroup)] == [0, 1]


def test_groups_go_to_the_rank_with_the_least_tokens() -> None:
    bench = Bench(need=3, ranks=2)
    bench.begin(slots=20)
    ranks = [only(bench.train_one(group), TrainGroup)[0].rank for group in (0, 1, 2)]
    assert ranks == [0, 1, 0]


def test_the_step_is_done_only_when_every_rank_has_stepped() -> None:
    bench = Bench(need=2, ranks=2)
    bench.begin(slots=20)
    for group in (0, 1):
        [train] = only(bench.train_one(group), TrainGroup)
        bench.handle(GroupTrained(rank=train.rank, group=group, tokens=7.0))
    finish_of(bench, rank=1)
    assert bench.core.step == 0
    finish_of(bench, rank=0)
    assert bench.core.step == 1


def test_an_answer_about_another_step_or_rank_changes_nothing() -> None:
    bench = Bench()
    bench.begin()
    bench.train_one(0)
    bench.handle(GroupTrained(rank=1, group=0, tokens=7.0))
    assert bench.group(0).state is GroupState.SENT
    bench.handle(StepDone(rank=0, step=0, version=1))  # nobody asked for it
    bench.handle(StepSkipped(rank=0, step=0, why="early"))
    assert (bench.core.step, bench.core.version) == (0, 0)
    bench.handle(GroupTrained(rank=0, group=0, tokens=7.0))
    bench.handle(StepDone(rank=0, step=5, version=9))
    assert (bench.core.step, bench.core.version) == (0, 0)


def test_published_weights_are_told_to_a_selector_that_wants_them() -> None:
    class Keeper:
        """Batch: takes the first ready group, closes without the barrier's deferral."""

        def decide(self, view: BatchView) -> Iterable[BatchAction]:
            if view.ready:
                yield Take(groups=view.ready)
            if view.taken + len(view.ready) and not view.closing:
                yield Close()

    bench = Bench(Scripted(published=True), steps=2, plugins={"batch": Keeper()})
    bench.begin()
    bench.learn(bench.train_one(0))
    assert not [e for _, e in bench.selector.seen if isinstance(e, WeightsPublished)]
    assert bench.core.version == 1


# --- prompts and budget -----------------------------------------------------------------------


def test_a_step_opens_at_most_tries_times_need_groups_then_closes_smaller() -> None:
    bench = Bench(need=2, tries=1.5, prompts=50)
    bench.begin(slots=20)
    for group in (0, 1):
        first = bench.group(group).members[0].id
        for trajectory in (first, first + 1):
            bench.tokens(trajectory, 2, "stop")
            bench.reward(trajectory, 1.0)
        bench.ask(group, Finalize((first, first + 1)))
        bench.tokens(first + 2, 0, "abort", leg=0, offset=0)
    assert list(bench.core.groups) == [2], "two dead ones, one more try"
    assert bench.warnings() == [
        "step 1 closes smaller: it has opened as many prompts as step.tries allows"
    ]
    bench.learn(bench.train_one(2))
    assert bench.core.step == 1
    assert bench.core.version == 1


def test_a_step_without_any_signal_ends_empty_and_the_run_goes_on() -> None:
    bench = Bench(need=1, tries=1.0, steps=2, prompts=50)
    bench.begin(slots=20)
    for trajectory in (0, 1):
        bench.tokens(trajectory, 2, "stop")
        bench.reward(trajectory, 0.0)
    bench.ask(0, Finalize((0, 1)))
    assert bench.core.step == 1
    assert bench.core.version == 0
    assert "step 1: no group with a signal, no update" in bench.warnings()
    assert [g.step for g in bench.core.groups.values()] == [1]


def test_a_run_without_prompts_left_ends_and_says_so() -> None:
    bench = Bench(plugins={"prompt_order": Planned()}, steps=3)
    bench.begin()
    assert bench.over == Shutdown(error="")
    assert bench.core.step == 0
    assert bench.warnings() == [
        "step 1 closes smaller: there are no more prompts",
        "the data is at its end: prompt_order has no more prompts; the run ends after 0 of 3 steps",
    ]


class Planned:
    """Prompts: one plan after another, then none."""

    def __init__(self, *plans: tuple[int, ...]) -> None:
        self._plans = list(plans)

    def plan(self, view: PlanView) -> Plan:
        return Plan(self._plans.pop(0) if self._plans else ())


@pytest.mark.parametrize("plan", [(0, 1, 2), (0, 0), (99,), (-1,)], ids=str)
def test_a_plan_that_does_not_fit_is_refused_by_name(plan: tuple[int, ...]) -> None:
    bench = Bench(plugins={"prompt_order": Planned(plan)}, need=2)
    with pytest.raises(PluginFault, match="prompts Planned: plan .* at most 2"):
        bench.begin()
    assert bench.core.groups == {}


class Odd(Candidates):
    def __init__(self, allocations: list[Allocation]) -> None:
        self.allocations = allocations

    def allocate(self, prompts: Any, view: Any) -> list[Allocation]:
        return self.allocations


@pytest.mark.parametrize(
    "allocations",
    [
        [],
        [Allocation(candidates=0, max_tokens=8)],
        [Allocation(candidates=5000, max_tokens=8)],
        [Allocation(candidates=2, max_tokens=0)],
    ],
    ids=["none", "no candidate", "too many", "no token"],
)
def test_a_budget_that_does_not_fit_is_refused_by_name(allocations: list[Allocation]) -> None:
    bench = Bench(plugins={"budget": Odd(allocations)})
    with pytest.raises(PluginFault, match="budget Odd: "):
        bench.begin()


# --- the batch seam ---------------------------------------------------------------------------


class Says:
    """Batch: one list of verbs for each question, then nothing."""

    def __init__(self, *answers: list[Any]) -> None:
        self._answers = list(answers)

    def decide(self, view: BatchView) -> Iterable[BatchAction]:
        return self._answers.pop(0) if self._answers else []


@pytest.mark.parametrize(
    "action,why",
    [
        (Take((0,)), "group 0 is not ready"),
        (Take((9,)), "group 9 is not ready"),
        (Relax(1), "size is 2 to 2"),
        (Relax(3), "size is 2 to 2"),
        ("take", "no action of a batch rule"),
    ],
    ids=str,
)
def test_a_wrong_batch_verb_is_refused_by_name(action: Any, why: str) -> None:
    bench = Bench(plugins={"batch": Says([action])})
    bench.begin()
    bench.tokens(0, 2, "stop")
    bench.tokens(1, 2, "stop")
    with pytest.raises(PluginFault, match=f"batch Says: .*{why}"):
        bench.ask(0, Enough())


def test_relax_tells_open_groups_their_new_size() -> None:
    bench = Bench(size=3, candidates=4, plugins={"batch": Says([Relax(2)])}, need=2)
    bench.begin()
    bench.ask(0, Enough())
    told = [(g.id, g.size) for g, event in bench.selector.seen if isinstance(event, Relaxed)]
    assert told == [(1, 2)], "group 0 has its members already"
    assert bench.coordinator.steps.state.size == 2


# --- the learner fails ------------------------------------------------------------------------


def test_a_group_whose_loss_is_not_finite_is_dropped_and_replaced() -> None:
    bench = Bench(need=1, prompts=9)
    bench.begin()
    bench.train_one(0)
    commands = bench.handle(GroupFailed(rank=0, group=0, why="loss is nan"))
    assert bench.fate(0) == ("dropped", "not finite")
    assert only(commands, ForgetGroup) == [], "the rank has forgotten it already"
    assert [g.prompt for g in bench.core.groups.values()] == [1]
    bench.learn(bench.train_one(1))
    assert bench.core.step == 1


def test_a_group_without_any_weight_is_dropped_not_divided_by() -> None:
    bench = Bench(need=1, prompts=9)
    bench.begin()
    bench.train_one(0)
    commands = bench.handle(GroupTrained(rank=0, group=0, tokens=0.0))
    assert only(commands, CloseStep) == []
    assert only(commands, ForgetGroup) == [ForgetGroup(rank=0, group=0)], "its rank holds it still"
    assert bench.fate(0) == ("dropped", "no weight")
    bench.handle(Tick())
    assert [g.prompt for g in bench.core.groups.values()] == [1]


def test_a_rejected_step_defers_its_prompts_and_keeps_the_version() -> None:
    bench = Bench(need=1, prompts=9)
    bench.begin()
    [train] = only(bench.train_one(0), TrainGroup)
    bench.handle(GroupTrained(rank=0, group=0, tokens=7.0))
    bench.handle(StepSkipped(rank=0, step=0, why="gradient is nan"))
    assert bench.fate(0) == ("deferred", "step skipped")
    assert (bench.core.step, bench.core.version) == (0, 0)
    assert bench.warnings() == ["step 1 skipped (1 in a row): gradient is nan"]
    [group] = bench.core.groups.values()
    assert (group.prompt, group.attempt) == (train.prompt, 1)


def reject_once(bench: Bench) -> None:
    [group] = bench.core.groups
    [train] = only(bench.train_one(group), TrainGroup)
    bench.handle(GroupTrained(rank=0, group=train.group, tokens=7.0))
    bench.handle(StepSkipped(rank=0, step=bench.core.step, why="gradient is nan"))


@pytest.mark.fault("three steps in a row are not finite", part="learner", by="direct")
def test_three_rejected_steps_in_a_row_stop_the_run_with_a_checkpoint() -> None:
    """Promise: the run stops with that reason, after a checkpoint.
    Bound: three steps.
    """
    bench = Bench()
    bench.begin(slots=20)
    for _ in range(3):
        assert bench.over is None
        reject_once(bench)
    [cut] = only(bench.everything, Checkpoint)
    bench.handle(Checkpointed(step=cut.step))
    assert bench.over == Shutdown(error="three steps in a row were skipped")


def test_a_good_step_begins_the_count_of_rejected_ones_anew() -> None:
    bench = Bench(steps=2)
    bench.begin(slots=30)
    reject_once(bench)
    reject_once(bench)
    bench.learn(bench.train_one(next(iter(bench.core.groups))))
    bench.serve()
    reject_once(bench)
    reject_once(bench)
    assert bench.over is None
    assert bench.coordinator.run.phase is RunPhase.TRAINING


def test_a_lost_learner_ends_the_run_and_says_so_once() -> None:
    bench = Bench()
    bench.begin()
    bench.handle(LearnerLost(rank=0, why="killed by SIGKILL"))
    bench.handle(LearnerLost(rank=0, why="again"))
    assert only(bench.everything, Shutdown) == [
        Shutdown(error="learner rank 0 lost: killed by SIGKILL")
    ]


class Sleepy:
    """Selector: parks every member until a publish that its group keeps from coming."""

    wants = Wants(every=1)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        running = tuple(m.id for m in group.members if m.state == "running")
        if running:
            yield Park(running, until="published")


def test_groups_that_are_all_parked_until_a_publish_do_not_hold_up_the_step() -> None:
    bench = Bench(need=1, tries=1.0, steps=1, prompts=50, plugins={"selector": Sleepy()})
    bench.begin(slots=20)
    for trajectory in range(len(bench.group(0).members)):
        if bench.over is None and trajectory in bench.core.trajectories:
            bench.tokens(trajectory, 1)
    assert bench.core.step == 1
    assert bench.core.ledger.accounts["aborted"] > 0


class Raising:
    """Selector: fails."""

    wants = Wants()

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        raise KeyError("longest")


@pytest.mark.fault("a selector raises", part="configuration", by="direct")
def test_what_a_plugin_raises_names_the_plugin_and_the_group() -> None:
    """Promise: the error names plug-in, group and what was raised.
    Bound: in the same event.
    """
    bench = Bench(plugins={"selector": Raising()})
    bench.begin()
    with pytest.raises(PluginFault, match="selector, group 0: Raising raised KeyError: 'longest'"):
        bench.tokens(0, 2, "stop")


# --- what a budget is told of the engines ---------------------------------------------------------


class Listening(Candidates):
    """Keeps the views that it was given."""

    def __init__(self) -> None:
        super().__init__(3)
        self.views: list[BudgetView] = []

    def allocate(self, prompts: Sequence[PromptView], view: BudgetView) -> Sequence[Allocation]:
        self.views.append(view)
        return super().allocate(prompts, view)


def test_a_step_planned_while_every_engine_loads_counts_them_all() -> None:
    """The plan is made in the event that publishes a version: nobody serves that version yet."""
    budget = Listening()
    bench = Bench(plugins={"budget": budget}, steps=3, need=1, engines=2)
    bench.begin(engines=2, slots=8)
    bench.learn(bench.train_one(0))
    assert bench.core.step == 1 and not bench.coordinator.scheduler.serving()
    assert [(view.engines, view.slots) for view in budget.views] == [(2, 16), (2, 16)]
    bench.handle(EngineLost(engine="e1", why="gone"))
    bench.serve()
    bench.learn(bench.train_one(1))
    assert (budget.views[-1].engines, budget.views[-1].slots) == (1, 8), "what is lost is not there"


def test_the_first_plan_counts_engines_that_have_yet_to_join() -> None:
    """A run begins, or is resumed, as soon as one of its engines serves."""
    budget = Listening()
    bench = Bench(plugins={"budget": budget}, engines=32)
    bench.begin(engines=1, slots=8)
    assert [(view.engines, view.slots) for view in budget.views] == [(32, 256)]
