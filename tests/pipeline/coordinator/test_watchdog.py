"""Every kind of wait past its limit: the run acts, once, and on nobody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from pipeline.coordinator.events import (
    AbandonCheckpoint,
    AbortLegs,
    CancelEnvironmentCall,
    CancelReward,
    Checkpoint,
    Checkpointed,
    EngineLost,
    Generate,
    GroupTrained,
    LearnerJoined,
    Published,
    Restart,
    Shutdown,
    Tick,
    TrainGroup,
    WeightsLoaded,
)
from pipeline.coordinator.groups import TrajectoryState
from pipeline.coordinator.timeouts import RULES, OverdueAction, Timeouts, WaitKind, limit_s
from pipeline.plugins.actions import Abort, BatchAction, Finalize
from pipeline.plugins.views import BatchView
from pipeline.simulation.fuzz import SHORT, Mode, acted
from tests.pipeline.coordinator.bench import Bench, only

LIMITS = Timeouts(
    join_s=50.0,
    load_s=20.0,
    abort_s=5.0,
    sampling_s=10.0,
    no_token_s=30.0,
    reward_s=15.0,
    learner_s=40.0,
    checkpoint_s=25.0,
)


def bench_of(**changes: object) -> Bench:
    return Bench(limits=LIMITS, **changes)  # type: ignore[arg-type]


def pass_time(bench: Bench, seconds: float, each: Callable[[], object] = lambda: None) -> list[str]:
    """Ticks of a second, and `each` before every one. What the run does then, by class."""
    before = len(bench.everything)
    for _ in range(round(seconds)):
        bench.now += 0.99
        each()
        bench.handle(Tick())
    return [type(command).__name__ for command in bench.everything[before:]]


def stopped(bench: Bench) -> str:
    """The error that the run ended with."""
    for cut in only(bench.everything, Checkpoint):
        bench.handle(Checkpointed(step=cut.step))
    [over] = only(bench.everything, Shutdown)
    return over.error


# --- engines --------------------------------------------------------------------------------


@pytest.mark.fault(
    "an engine sends nothing of what it samples while its heartbeats go on",
    part="engines",
    by="direct",
)
def test_an_engine_that_sends_nothing_is_restarted_and_its_work_goes_on_elsewhere() -> None:
    """Promise: it is ended and started again, and its trajectories go on at another engine, with
    the tokens received; an engine that sends is left alone.
    Bound: `timeouts.sampling_s` (here 10 s).
    """
    bench = bench_of(candidates=2)
    bench.begin(engines=2, slots=1)
    bench.tokens(0, 3)
    assert "Restart" not in pass_time(bench, 9, lambda: bench.tokens(1, 1, engine="e1"))
    pass_time(bench, 3, lambda: bench.tokens(1, 1, engine="e1"))
    [restart] = only(bench.everything, Restart)
    assert restart.peer == "e0"
    assert restart.why.startswith("it has sent nothing of 1 legs for 1")
    bench.tokens(1, 1, "stop", engine="e1")
    place = only(bench.everything, Generate)[-1]
    assert (place.engine, place.trajectory, len(place.prefix) // 4) == ("e1", 0, 3)
    assert bench.coordinator.watchdog.acted == {"engine": 1}


@pytest.mark.fault("an engine stops sampling one of its requests", part="engines", by="direct")
def test_a_trajectory_that_stands_still_is_aborted_and_goes_on() -> None:
    """Promise: it is aborted there and queued again with its tokens; the others are left alone,
    and after three such legs it is given up.
    Bound: `timeouts.no_token_s` (here 30 s).
    """
    bench = bench_of(candidates=2, max_tokens=100)
    bench.begin(slots=3)
    bench.tokens(0, 3)
    done = pass_time(bench, 32, lambda: bench.tokens(1, 1))
    assert done.count("AbortLegs") == done.count("Generate") == 1
    assert only(bench.everything, AbortLegs) == [AbortLegs(engine="e0", legs=((0, 0),))]
    place = only(bench.everything, Generate)[-1]
    assert (place.trajectory, place.leg, len(place.prefix) // 4) == (0, 1, 3)
    assert "no token of it has come from e0" in bench.warnings()[-1]


@pytest.mark.fault("an engine ignores an abort", part="engines", by="direct")
def test_an_engine_that_ignores_an_abort_is_restarted() -> None:
    """Promise: its slot stays taken until it is ended and started again; the line names the legs.
    Bound: `timeouts.abort_s` (here 5 s).
    """
    bench = bench_of(candidates=3)
    bench.begin()
    bench.ask(0, Abort((2,)))
    assert "Restart" not in pass_time(bench, 4, lambda: bench.tokens(0, 1))
    pass_time(bench, 2, lambda: bench.tokens(0, 1) if not only(bench.everything, Restart) else 0)
    [restart] = only(bench.everything, Restart)
    assert "has not answered for 5 s that legs have ended: 2.0" in restart.why


def test_an_abort_is_not_due_while_the_engine_loads() -> None:
    bench = bench_of(candidates=3)
    bench.begin()
    bench.ask(0, Abort((2,)))
    bench.handle(Published(version=1))
    assert "Restart" not in pass_time(bench, 15)
    bench.serve()
    assert "Restart" not in pass_time(bench, 4, lambda: bench.tokens(0, 1))
    assert "Restart" in pass_time(bench, 2)


@pytest.mark.fault("an engine never ends a load of weights", part="engines", by="direct")
def test_an_engine_that_never_serves_is_restarted() -> None:
    """Promise: it is ended and started again, however often newer weights come meanwhile.
    Bound: `timeouts.load_s` (here 20 s).
    """
    bench = bench_of()
    bench.begin()
    version = 0

    def publish() -> None:
        nonlocal version
        version += 1
        bench.handle(Published(version=version))

    publish()
    assert "Restart" not in pass_time(bench, 19, publish)
    assert "Restart" in pass_time(bench, 2)
    assert "it has not served version 20 for 2" in only(bench.everything, Restart)[0].why


def test_an_engine_that_serves_older_versions_late_is_at_work() -> None:
    bench = bench_of()
    bench.begin()
    version = 0

    def publish() -> None:
        nonlocal version
        version += 1
        bench.handle(Published(version=version))
        bench.handle(WeightsLoaded(engine="e0", version=version - 1, gap=0.0))

    publish()
    assert "Restart" not in pass_time(bench, 60, publish)


# --- rewards, learner, checkpoints ----------------------------------------------------------


@pytest.mark.fault("a reward never answers", part="rewards", by="direct")
def test_a_reward_that_never_comes_is_missing_never_zero() -> None:
    """Promise: the question is taken back, the member is missing from its group, and the group
    goes on without it.
    Bound: `timeouts.reward_s` and two calls of `limit_s` without any reward (here 15 s).
    """
    bench = bench_of(size=3)
    bench.begin()
    for trajectory in (0, 1):
        bench.tokens(trajectory, 3, "stop")
    bench.selector.say(0, Finalize((0, 1, 2)))
    bench.tokens(2, 3, "stop")
    bench.reward(1, 1.0)
    bench.reward(2, 0.0)
    assert "CancelReward" not in pass_time(bench, 14)
    pass_time(bench, 2)
    assert only(bench.everything, CancelReward) == [CancelReward(trajectory=0)]
    [train] = only(bench.everything, TrainGroup)
    assert [(m.trajectory, m.reward) for m in train.members] == [(1, 1.0), (2, 0.0)]
    assert bench.member(0).reward_why == "its reward never came"


def test_a_reward_that_was_taken_back_is_not_waited_for_and_did_not_fail() -> None:
    bench = Bench(limits=Timeouts(reward_s=LIMITS.reward_s), candidates=4)
    bench.begin()
    bench.tokens(2, 5, "stop")
    [train] = only(bench.train_one(0), TrainGroup)
    assert only(bench.everything, CancelReward) == [CancelReward(trajectory=2)]
    assert [wait for wait in bench.coordinator.waits.find() if wait.kind is WaitKind.REWARD] == []
    pass_time(bench, 20)
    assert not bench.warnings()
    bench.learn([train])
    assert (bench.accounts["redundant"], bench.accounts.get("failed")) == (5, None)
    assert only(bench.everything, CancelReward) == [CancelReward(trajectory=2)]


@pytest.mark.fault("an environment never answers", part="rewards", by="direct")
def test_an_environment_that_never_answers_costs_its_member_and_not_the_group() -> None:
    """Promise: the question is taken back, the member is missing from its group, and the group
    goes on without it.
    Bound: `timeouts.reward_s` without an answer of any environment (here 15 s).
    """
    bench = bench_of(turns=3)
    bench.begin()
    bench.tokens(0, 3, "stop")
    assert "CancelEnvironmentCall" not in pass_time(bench, 14, lambda: bench.tokens(1, 1))
    pass_time(bench, 2)
    assert only(bench.everything, CancelEnvironmentCall) == [CancelEnvironmentCall(trajectory=0)]
    assert bench.warnings() == ["trajectory 0: given up after no environment has answered for 15 s"]
    assert [m.id for m in bench.group(0).members if m.state is not TrajectoryState.ABORTED] == [
        1,
        2,
    ]


def test_rewards_that_come_are_progress_for_those_in_the_queue() -> None:
    bench = bench_of(candidates=8)
    bench.begin()
    for trajectory in range(8):
        bench.tokens(trajectory, 3, "stop")
    turn = iter(range(7))
    for _ in range(7):
        assert "CancelReward" not in pass_time(bench, 12)
        bench.reward(next(turn), 1.0)


@pytest.mark.fault(
    "a learner rank stands still while its heartbeats go on", part="learner", by="direct"
)
def test_a_rank_that_owes_an_answer_for_too_long_is_lost() -> None:
    """Promise: the run ends with the rank's name, to be resumed from its last checkpoint.
    Bound: `timeouts.learner_s` without an answer of that rank (here 40 s).
    """
    bench = bench_of()
    bench.begin()
    bench.train_one(0)
    assert "Shutdown" not in pass_time(bench, 39)
    pass_time(bench, 3)
    [over] = only(bench.everything, Shutdown)
    assert over.error.startswith("learner rank 0 lost: it owes an answer and has given none for 4")


def test_the_close_of_a_step_has_a_limit_of_its_own() -> None:
    bench = bench_of()
    bench.begin()
    bench.train_one(0)
    pass_time(bench, 30)
    bench.handle(GroupTrained(rank=0, group=0, tokens=7.0))
    assert "Shutdown" not in pass_time(bench, 39)
    assert "Shutdown" in pass_time(bench, 3)


@pytest.mark.fault(
    "a checkpoint is never whole: a rank or the disk does not answer",
    part="checkpoints",
    by="direct",
)
def test_a_checkpoint_that_never_ends_is_given_up_and_three_in_a_row_stop_the_run() -> None:
    """Promise: it is given up with a warning, and the next one is tried; the third in a row stops
    the run.
    Bound: `timeouts.checkpoint_s` each (here 25 s).
    """
    limits = Timeouts(checkpoint_s=LIMITS.checkpoint_s)
    bench = Bench(limits=limits, steps=9, checkpoint_every=1)
    bench.begin()
    for step in range(3):
        bench.learn(bench.train_one(step))
        bench.serve()
        assert "AbandonCheckpoint" not in pass_time(bench, 24)
        assert "AbandonCheckpoint" in pass_time(bench, 2)
        given_up = only(bench.everything, AbandonCheckpoint)[-1]
        bench.handle(Checkpointed(step=step + 1, error=f"no answer in {given_up.seconds:.0f} s"))
        assert "no checkpoint at step" in bench.warnings()[-1]
    assert stopped(bench) == "3 checkpoints in a row failed; the last: no answer in 26 s"


@pytest.mark.fault("three checkpoints in a row fail", part="checkpoints", by="direct")
def test_three_checkpoints_that_fail_in_a_row_stop_the_run_with_the_last_reason() -> None:
    """Promise: the first two are warned of, and the run goes on; at the third it tries one last
    checkpoint and stops with the reason.
    Bound: three checkpoints.
    """
    bench = Bench(steps=9, checkpoint_every=1)
    bench.begin()
    for step in range(3):
        assert bench.coordinator.run.phase == "training"
        bench.learn(bench.train_one(step))
        bench.serve()
        bench.handle(Checkpointed(step=step + 1, error=f"disk full, {step}"))
    assert [w for w in bench.warnings() if "disk full" in w] == [
        f"no checkpoint at step {step + 1}: disk full, {step}" for step in range(3)
    ]
    assert bench.coordinator.run.phase == "halting"
    assert [cut.step for cut in only(bench.everything, Checkpoint)] == [1, 2, 3, 3]
    bench.handle(Checkpointed(step=3, error="disk full still"))
    [over] = only(bench.everything, Shutdown)
    assert over.error == "3 checkpoints in a row failed; the last: disk full, 2"


def test_a_checkpoint_that_is_whole_forgives_those_that_failed() -> None:
    bench = bench_of(steps=9, checkpoint_every=1)
    bench.begin()
    for step in range(6):
        bench.learn(bench.train_one(step))
        bench.serve()
        bench.handle(Checkpointed(step=step + 1, error="" if step == 2 else "disk full"))
    assert only(bench.everything, Shutdown) == [] and bench.coordinator.run.phase == "halting"


# --- the run as a whole ---------------------------------------------------------------------


@pytest.mark.fault("an engine or a learner rank never joins", part="stage", by="direct")
def test_who_never_joins_is_named_and_the_run_stops() -> None:
    """Promise: the run stops and names everybody who is missing.
    Bound: `timeouts.join_s` (here 50 s).
    """
    bench = bench_of(ranks=2)
    bench.handle(LearnerJoined(rank=0))
    assert "Shutdown" not in pass_time(bench, 50)
    pass_time(bench, 3)
    [over] = only(bench.everything, Shutdown)
    missing = "learner rank 1, an engine that serves the weights"
    assert over.error.endswith(f"s still missing: {missing}")


@pytest.mark.fault("all engines are lost and none comes back", part="engines", by="direct")
def test_a_run_without_any_engine_stops_after_a_checkpoint() -> None:
    """Promise: the run writes a checkpoint and stops, and says that no engine came back.
    Bound: `timeouts.join_s` (here 50 s).
    """
    bench = bench_of()
    bench.begin()
    pass_time(bench, 5, lambda: bench.tokens(0, 1))
    bench.handle(EngineLost(engine="e0", why="killed"))
    assert "Checkpoint" not in pass_time(bench, 49)
    pass_time(bench, 3)
    assert stopped(bench).startswith("no engine for 5")


class Never:
    """Batch: takes nothing, closes nothing."""

    def decide(self, view: BatchView) -> Iterable[BatchAction]:
        return ()


@pytest.mark.fault("a plug-in lets the run wait for ever", part="stage", by="direct")
def test_a_rule_that_takes_nothing_stops_the_run_by_its_name() -> None:
    """Promise: when nothing moves and nothing is under way the run stops, after a checkpoint, with
    the plug-in's name.
    Bound: `timeouts.no_token_s` (here 30 s).
    """
    bench = bench_of(plugins={"batch": Never()})
    bench.begin()
    bench.train_one(0)
    bench.tokens(2, 0, "abort", leg=0)
    assert "Checkpoint" not in pass_time(bench, 29)
    pass_time(bench, 3)
    error = stopped(bench)
    assert "nothing is under way" in error
    assert error.endswith("which waits for batch rule Never to take it")


@pytest.mark.fault("the stage stood still while a wait passed its limit", part="stage", by="direct")
def test_a_stage_that_stood_still_itself_blames_nobody() -> None:
    """Promise: nobody is ended for what fell into the time in which the stage itself stood still.
    Bound: as much time again as it stood still (here 100 s).
    """
    bench = bench_of(candidates=2)
    bench.begin()
    pass_time(bench, 3)
    bench.now += 100
    bench.handle(Tick())
    assert "Restart" not in pass_time(bench, 5)
    bench.tokens(0, 1)
    bench.tokens(1, 1)
    assert "Restart" not in pass_time(bench, 9)
    assert "Restart" in pass_time(bench, 100)


def test_every_wait_has_a_row_and_every_row_with_a_limit_an_action() -> None:
    assert set(RULES) == set(WaitKind)
    for kind, rule in RULES.items():
        assert (rule.setting == "") == (rule.action is OverdueAction.NONE), kind
        assert limit_s(kind, LIMITS) > 0


def test_without_limits_it_acts_on_nothing() -> None:
    bench = Bench()
    bench.begin()
    assert set(pass_time(bench, 2000)) <= {"Report"}


# --- in the simulator -----------------------------------------------------------------------


@pytest.mark.fault(
    "engines, rewards, learner and disk stop to answer: at random",
    part="everything",
    by="simulator",
)
@pytest.mark.timeout(120)
def test_nobody_who_stops_to_answer_makes_a_run_hang() -> None:
    """Promise: the run does all its steps, from its last checkpoint where the learner hung, with
    the books balanced at every event; each row of the table that can be met is acted on.
    Bound: 80 seeds of the simulator's `hang` mode, in virtual time.
    """
    found: Counter[str] = Counter()
    for seed in range(80):
        found += acted(seed, Mode.HANG, SHORT)
    expected = {
        WaitKind.LOAD,
        WaitKind.ABORT,
        WaitKind.ENGINE,
        WaitKind.TRAJECTORY,
        WaitKind.REWARD,
        WaitKind.LEARNER,
    }
    assert {*expected, WaitKind.CHECKPOINT} <= set(found)


@pytest.mark.parametrize("mode", [Mode.HEAL, Mode.CHAOS])
def test_where_nobody_hangs_nobody_is_suspected(mode: Mode) -> None:
    for seed in range(15):
        assert not acted(seed, mode, LIMITS), seed
