"""Turns: what an environment appends is context, and nothing that happens on the way loses it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import (
    AnyCommand,
    AnyEvent,
    CallEnvironment,
    CancelEnvironmentCall,
    EngineLost,
    Generate,
    Published,
    Report,
    RequestReward,
    TrainGroup,
    TurnAnswered,
    TurnFailed,
)
from pipeline.coordinator.groups import TrajectoryState
from pipeline.observability.timeline import Timeline
from pipeline.observability.timing import timing_metrics
from pipeline.plugins.actions import Abort, Finalize, Park, Stop
from pipeline.wire.messages import floats, ints
from tests.pipeline.coordinator.bench import EOS, Bench, Scripted, only, placed

APPENDED = 7


def bench_of(**changes: Any) -> Bench:
    usual: dict[str, Any] = {"candidates": 2, "turns": 3}
    bench = Bench(**(usual | changes))
    bench.begin()
    return bench


def answer(bench: Bench, trajectory: int, count: int, **other: Any) -> list[AnyCommand]:
    """The environment appends so many tokens to the turn at hand."""
    turn = other.pop("turn", bench.member(trajectory).turns - 1)
    tokens = np.full(count, APPENDED, "<i4").tobytes()
    given: dict[str, Any] = {"over": False, "tokens": tokens, **other}
    return bench.handle(TurnAnswered(trajectory=trajectory, turn=turn, **given))


def over(bench: Bench, trajectory: int) -> list[AnyCommand]:
    turn = bench.member(trajectory).turns - 1
    return bench.handle(TurnAnswered(trajectory=trajectory, turn=turn, over=True))


def test_a_turn_that_is_over_frees_its_slot_and_asks_with_all_that_an_answer_depends_on():
    bench = bench_of()
    [asked] = only(bench.tokens(0, 3, "stop"), CallEnvironment)
    assert (asked.turn, asked.finish, asked.left, asked.appended) == (0, "stop", 21, ())
    assert ints(asked.tokens).tolist() == [5, 5, EOS]
    assert bench.member(0).state is TrajectoryState.WAITING_ENV
    assert (0, 0) not in bench.coordinator.scheduler.engines["e0"].legs
    assert [w.what for w in bench.coordinator.waits.find() if "environment" in w.what] == [
        (
            "step 1 waits for train group 0, which waits for "
            "the environment to answer turn 1 of trajectory 0"
        )
    ]


def test_appended_tokens_begin_the_next_leg_and_are_in_no_figure_of_what_was_sampled():
    bench = bench_of()
    bench.tokens(0, 3, "stop")
    [place] = only(answer(bench, 0, 4, memory={"calls": 1}), Generate)
    assert (place.trajectory, place.leg, place.max_tokens) == (0, 1, 17)
    assert ints(place.prefix).tolist() == [5, 5, EOS, *[APPENDED] * 4]
    first_seed = only(bench.everything, Generate)[0].seed
    assert place.seed != first_seed
    [asked] = only(bench.tokens(0, 2, "stop"), CallEnvironment)
    assert (asked.turn, asked.appended, asked.memory) == (1, ((3, 4),), {"calls": 1})
    [judge] = only(over(bench, 0), RequestReward)
    assert judge.appended == ((3, 4),)
    member = bench.member(0)
    assert (member.state, member.held, member.sampled) == (TrajectoryState.FINISHED, 9, 5)
    assert member.confidence == pytest.approx(-0.5)
    assert bench.core.ledger.sampled == 5
    assert (bench.core.ledger.appended, bench.core.ledger.turns) == (4, 2)
    assert bench.core.stats.lengths == [5]
    view = bench.coordinator.selection.view(bench.group(0))
    assert next((m.state, m.tokens) for m in view.members) == ("finished", 5)


def test_what_goes_to_the_learner_says_which_tokens_were_appended():
    bench = bench_of()
    bench.tokens(0, 3, "stop")
    answer(bench, 0, 4)
    bench.tokens(0, 2, "stop")
    over(bench, 0)
    bench.tokens(1, 4, "stop")
    bench.selector.say(0, Finalize((0, 1)))
    over(bench, 1)
    bench.reward(0, 1.0)
    [train] = only(bench.reward(1, 0.0), TrainGroup)
    first, second = train.members
    assert (first.appended, first.sampled_tokens, second.appended, second.sampled_tokens) == (
        ((3, 4),),
        5,
        (),
        4,
    )
    assert floats(first.behaviour).tolist() == [-0.5] * 3 + [0.0] * 4 + [-0.5] * 2
    bench.learn([train])
    [step] = [c.fields for c in only(bench.everything, Report) if c.what == "step"]
    assert (step["tokens_sampled"], step["tokens_trained"]) == (9, 9)
    assert (step["turns"], step["tokens_appended"]) == (3, 4)
    table = next(c.fields for c in only(bench.everything, Report) if c.what == "group")["members"]
    assert [(row[2], row[7:]) for row in table] == [(5, [2, 4]), (4, [1, 0])]


@pytest.mark.parametrize(
    "appended, state",
    [
        (20, TrajectoryState.RUNNING),
        (21, TrajectoryState.TRUNCATED),
        (500, TrajectoryState.TRUNCATED),
    ],
    ids=["one token left", "none left", "far too much"],
)
def test_what_leaves_no_room_for_an_answer_to_it_is_not_appended(
    appended: int, state: TrajectoryState
):
    bench = bench_of()
    bench.tokens(0, 3, "stop")
    answer(bench, 0, appended)
    member = bench.member(0)
    if state is TrajectoryState.RUNNING:
        assert (member.state, member.held) == (TrajectoryState.RUNNING, 23)
    else:
        assert (member.state, member.held, member.limited) == (state, 3, True)


@pytest.mark.parametrize(
    "last, state", [(EOS, TrajectoryState.FINISHED), (9, TrajectoryState.TRUNCATED)]
)
def test_after_the_last_call_a_stop_token_finishes_and_a_stop_text_cuts(
    last: int, state: TrajectoryState
):
    bench = bench_of(turns=1)
    bench.tokens(0, 3, "stop")
    answer(bench, 0, 2)
    made = bench.chunk(0, 2, "stop")
    made[1][-1] = last
    commands = bench.handle(bench.frame(made))
    assert not only(commands, CallEnvironment)
    assert bench.member(0).state is state


def test_a_turn_of_its_own_limit_is_told_as_one_that_was_cut():
    bench = bench_of(turn_tokens=4)
    assert {p.max_tokens for p in only(bench.everything, Generate)} == {4}
    [asked] = only(bench.tokens(0, 4, "length"), CallEnvironment)
    assert asked.finish == "length"
    [place] = only(answer(bench, 0, 3), Generate)
    assert place.max_tokens == 4, "appended tokens are not of the next turn"


def test_nothing_appended_lets_the_model_go_on_but_not_after_a_stop_token():
    bench = bench_of()
    made = bench.chunk(0, 2, "stop")
    made[1][-1] = 9  # a stop text
    bench.handle(bench.frame(made))
    assert placed(answer(bench, 0, 0)) == [(0, 1)]
    bench.tokens(0, 2, "stop")
    answer(bench, 0, 0)
    assert bench.member(0).state is TrajectoryState.FINISHED


def test_a_lost_engine_takes_no_call_with_it_and_its_legs_go_on_after_what_was_appended():
    bench = bench_of()
    bench.tokens(0, 3, "stop")
    bench.tokens(1, 3, "stop")
    answer(bench, 1, 2)  # runs its second leg, with nothing new yet
    bench.handle(EngineLost(engine="e0", why="killed"))
    assert bench.member(0).state is TrajectoryState.WAITING_ENV
    assert (bench.member(1).state, bench.member(1).leg) == (TrajectoryState.QUEUED, 2)
    assert not only(answer(bench, 0, 4), Generate), "there is no engine"
    again = bench.join("e0")
    assert sorted(placed(again)) == [(0, 1), (1, 2)]
    held = {p.trajectory: ints(p.prefix).tolist() for p in only(again, Generate)}
    assert held[0] == [5, 5, EOS, *[APPENDED] * 4]
    assert held[1] == [5, 5, EOS, *[APPENDED] * 2]


def test_a_lost_leg_whose_last_appended_token_looks_like_a_stop_token_goes_on():
    bench = bench_of()
    bench.tokens(0, 3, "stop")
    answer(bench, 0, 1, tokens=np.array([EOS], "<i4").tobytes())
    bench.handle(EngineLost(engine="e0", why="killed"))
    assert bench.member(0).state is TrajectoryState.QUEUED


@pytest.mark.parametrize("action", ["Abort", "Stop", "Finalize"])
def test_what_ends_a_member_ends_its_call(action: str):
    bench = bench_of(candidates=3)
    bench.tokens(0, 3, "stop")
    for other in (1, 2):
        bench.tokens(other, 3, "stop")
        over(bench, other)
    actions = {"Abort": Abort((0,)), "Stop": Stop((0,)), "Finalize": Finalize((1, 2))}
    commands = bench.ask(0, actions[action])
    assert only(commands, CancelEnvironmentCall) == [CancelEnvironmentCall(trajectory=0)]
    late = bench.handle(TurnAnswered(trajectory=0, turn=0, over=False, tokens=bytes(8)))
    assert not only(late, Generate), "an answer that nobody waits for has no effect"
    assert bench.core.ledger.imbalance == 0


def test_a_parked_member_finishes_its_call_and_waits_with_what_it_was_told():
    bench = bench_of()
    bench.tokens(0, 3, "stop")
    bench.ask(0, Park((0,), until="published"))
    assert bench.member(0).state is TrajectoryState.WAITING_ENV
    assert not placed(answer(bench, 0, 4))
    member = bench.member(0)
    assert (member.state, member.held, bench.accounts["parked"]) == (TrajectoryState.PARKED, 7, 3)


def test_a_member_parked_until_a_publish_that_comes_during_its_call_goes_on_after_it():
    bench = bench_of()
    bench.tokens(0, 3, "stop")
    bench.ask(0, Park((0,), until="published"))
    bench.handle(Published(version=1))
    bench.serve()
    assert placed(answer(bench, 0, 4)) == [(0, 1)], "what it was to wait for has come already"
    assert bench.member(0).state is TrajectoryState.RUNNING


def test_a_selector_hears_of_every_so_many_sampled_tokens_whatever_was_appended():
    bench = bench_of(selector=Scripted(every=4, tick=False))
    bench.tokens(0, 3, "stop")
    answer(bench, 0, 6)
    bench.selector.seen.clear()
    for _ in range(6):
        bench.tokens(0, 1)
    heard = [next(m.tokens for m in view.members if m.id == 0) for view, _ in bench.selector.seen]
    assert heard == [4, 8]


def test_a_failed_call_leaves_the_group_smaller_never_wrong():
    bench = bench_of(candidates=3)
    bench.tokens(0, 3, "stop")
    bench.handle(TurnFailed(trajectory=0, turn=0, why="it raised"))
    assert [m.id for m in bench.group(0).members if m.state is not TrajectoryState.ABORTED] == [
        1,
        2,
    ]
    assert bench.accounts["failed"] == 3
    assert bench.warnings() == ["trajectory 0: given up after it raised"]


def test_a_resume_asks_again_and_answers_to_the_first_question_count():
    bench = bench_of()
    bench.tokens(0, 3, "stop")
    answer(bench, 0, 4, memory=[1, "two"])
    [asked] = only(bench.tokens(0, 2, "stop"), CallEnvironment)
    saved = msgspec.msgpack.decode(
        msgspec.msgpack.encode(snapshot.take(bench.coordinator)), type=snapshot.Snapshot
    )
    fresh = Bench(candidates=2, turns=3)
    again = snapshot.restore(fresh.coordinator, saved, 0.0)
    assert only(again, CallEnvironment) == [asked]
    assert isinstance(fresh.coordinator, Coordinator)
    fresh.begin()
    answer(fresh, 0, 1)
    assert fresh.member(0).appended == [(3, 4), (9, 1)]
    assert fresh.member(0).state is TrajectoryState.RUNNING


def test_a_call_is_a_span_of_its_own_and_a_kind_of_wait():
    bench, timeline = Bench(candidates=2, turns=3), Timeline()
    handle = bench.coordinator.handle

    def heard(event: AnyEvent, now: float) -> list[AnyCommand]:
        commands = handle(event, now)
        timeline.record_event(now, event, commands)
        return commands

    bench.coordinator.handle = heard
    bench.begin()
    bench.tokens(0, 3, "stop")
    begun = bench.now
    bench.now += 2.0
    answer(bench, 0, 4, times=(begun + 0.5, begun + 1.5))
    bench.tokens(0, 1, "stop")
    over(bench, 0)
    record = timeline.rest()
    first, second = record.callings
    assert (first.turn, first.appended, second.turn, second.appended) == (0, 4, 1, 0)
    found = timing_metrics(record)["percentiles"]
    assert found["turn_wait_s"]["count"] == 2
    assert found["turn_s"]["max"] == pytest.approx(1.0)
