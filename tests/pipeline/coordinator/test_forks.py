"""Members that begin with the first tokens of another: counted once, continued, or refused."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import (
    Generate,
    Report,
    RequestReward,
    StreamTokens,
    TrainGroup,
    TurnAnswered,
)
from pipeline.coordinator.groups import TrajectoryState
from pipeline.coordinator.old_logprobs import for_training, keep, token_versions
from pipeline.coordinator.state import PluginFault
from pipeline.plugins.actions import Abort, AnyAction, Finalize, Park, Sample, Stop
from pipeline.wire.messages import floats, ints
from tests.pipeline.coordinator.bench import Bench, only, piece_of


@pytest.fixture
def bench() -> Bench:
    """Group 0 with members 0 (finished, 6 tokens), 1 (running, 5 tokens) and 2 (running, none)."""
    bench = Bench(tries=30.0)
    bench.begin()
    bench.tokens(0, 6, "stop")
    bench.tokens(1, 5, last=9)
    return bench


def test_a_fork_continues_from_the_first_tokens_of_its_origin(bench: Bench) -> None:
    [request] = only(bench.ask(0, Sample(1, fork=(1, 3))), Generate)
    assert (request.trajectory, ints(request.prefix).tolist()) == (3, [5, 5, 5])
    assert request.max_tokens == 24 - 3
    other = next(c for c in only(bench.everything, Generate) if c.trajectory == 1)
    assert request.seed != other.seed
    bench.tokens(3, 2)
    member = bench.member(3)
    assert (member.held, member.sampled, member.own) == (5, 5, 2)
    assert floats(bytes(member.logprobs)).tolist() == [-0.5] * 5
    assert member.confidence == -0.5


def test_the_tokens_of_a_fork_are_counted_where_they_were_sampled(bench: Bench) -> None:
    bench.ask(0, Sample(2, fork=(1, 3)))
    assert bench.accounts == {"open": 11}
    assert bench.core.ledger.forked == 6
    bench.tokens(3, 2)
    assert bench.accounts == {"open": 13}
    bench.ask(0, Park((3,), until="published"))
    assert bench.accounts == {"open": 11, "parked": 2}
    bench.ask(0, Stop((3,)))
    assert bench.accounts == {"open": 13}
    bench.ask(0, Abort((4,)))
    assert bench.accounts == {"open": 13}, "one that had sampled nothing wastes nothing"


def test_an_origin_that_is_aborted_takes_its_tokens_along(bench: Bench) -> None:
    bench.ask(0, Sample(1, fork=(1, 3)), Abort((1,)))
    assert bench.accounts == {"open": 6, "aborted": 5}
    bench.tokens(3, 2, "stop")
    bench.ask(0, Finalize((0, 3)))
    bench.reward(0, 1.0)
    commands = bench.reward(3, 0.0)
    [train] = only(commands, TrainGroup)
    assert [len(m.response) // 4 for m in train.members] == [6, 5]
    bench.learn(commands)
    assert bench.accounts == {"trained": 8, "aborted": 5}


def test_origin_and_fork_are_both_trained_on_whole_and_counted_once(bench: Bench) -> None:
    bench.ask(0, Sample(1, fork=(0, 4)))
    [judge] = only(bench.tokens(3, 3, "stop"), RequestReward)
    assert len(judge.tokens) == 4 * 7
    bench.ask(0, Finalize((0, 3)))
    bench.reward(0, 1.0)
    commands = bench.reward(3, 0.0)
    [train] = only(commands, TrainGroup)
    assert [(m.trajectory, len(m.response) // 4) for m in train.members] == [(0, 6), (3, 7)]
    bench.learn(commands)
    assert bench.accounts == {"trained": 9, "aborted": 5}
    [group] = [r.fields for r in only(bench.everything, Report) if r.what == "group"]
    assert group["forks"] == {"3": [0, 4]}
    assert bench.core.ledger.sampled == 14


def test_a_fork_of_a_fork_has_only_its_own_tokens_in_its_account(bench: Bench) -> None:
    bench.ask(0, Sample(1, fork=(1, 3)))
    bench.tokens(3, 4)
    bench.ask(0, Sample(1, fork=(3, 5)))
    bench.tokens(4, 1)
    found = bench.member(4)
    assert (found.fork, found.prefix, found.held, found.own) == (3, 5, 6, 1)
    assert bench.accounts == {"open": 11 + 4 + 1}


def test_a_selector_sees_whose_fork_a_member_is(bench: Bench) -> None:
    bench.ask(0, Sample(1, fork=(1, 3)))
    bench.ask(0)
    members = {m.id: (m.fork, m.tokens) for m in bench.selector.seen[-1][0].members}
    assert members == {0: (-1, 6), 1: (-1, 5), 2: (-1, 0), 3: (1, 3)}


WRONG: list[tuple[AnyAction, str]] = [
    (Sample(1, fork=(9, 2)), "no member 9"),
    (Sample(1, fork=(1, 0)), "0 tokens of member 1, of which 1 to 5 can"),
    (Sample(1, fork=(1, 6)), "6 tokens of member 1, of which 1 to 5 can"),
    (Sample(1, fork=(0, 6)), "6 tokens of member 0, of which 1 to 5 can"),
    (Sample(1, fork=(2, 1)), "1 tokens of member 2, of which none can"),
    (Sample(1, variant="hint", fork=(1, 2)), "no variant"),
]


@pytest.mark.parametrize("action, why", WRONG, ids=str)
def test_a_fork_that_cannot_be_is_refused_and_changes_nothing(
    bench: Bench, action: AnyAction, why: str
) -> None:
    before = msgspec.to_builtins([list(bench.core.groups.values()), bench.core.ledger])
    with pytest.raises(PluginFault, match="selector Scripted, group 0") as caught:
        bench.ask(0, action)
    assert why in str(caught.value)
    assert msgspec.to_builtins([list(bench.core.groups.values()), bench.core.ledger]) == before


def test_a_fork_of_an_aborted_member_is_refused(bench: Bench) -> None:
    bench.ask(0, Abort((1,)))
    with pytest.raises(PluginFault, match="of member 1, of which none can"):
        bench.ask(0, Sample(1, fork=(1, 2)))


def test_a_full_response_can_be_forked_before_its_last_token_alone() -> None:
    bench = Bench(tries=30.0, max_tokens=4)
    bench.begin()
    bench.tokens(0, 4, "length")
    with pytest.raises(PluginFault, match="of which 1 to 3 can be continued"):
        bench.ask(0, Sample(1, fork=(0, 4)))
    [request] = only(bench.ask(0, Sample(1, fork=(0, 3))), Generate)
    assert request.max_tokens == 1


def test_tokens_of_an_environment_and_a_turn_that_is_over_are_not_forked() -> None:
    bench = Bench(tries=30.0, turns=3)
    bench.begin()
    bench.tokens(0, 4, "stop")
    with pytest.raises(PluginFault, match="1 to 3 can be continued"):
        bench.ask(0, Sample(1, fork=(0, 4)))
    appended = np.array([7, 7], "<i4").tobytes()
    bench.handle(TurnAnswered(trajectory=0, turn=0, over=False, tokens=appended))
    bench.tokens(0, 3)
    for at in (5, 8):
        with pytest.raises(PluginFault, match="fork: "):
            bench.ask(0, Sample(1, fork=(0, at)))
    bench.ask(0, Sample(1, fork=(0, 3)))
    assert (bench.member(3).turns, bench.member(3).held) == (0, 3)


def test_versions_and_old_logprobs_of_the_first_tokens_come_along() -> None:
    bench = Bench(tries=30.0, steps=3, prompts=9, max_staleness=1)
    bench.begin(version=4)
    bench.tokens(0, 2, version=3)
    bench.tokens(0, 4)
    origin = bench.member(0)
    origin.old += np.array([-1.25, -2.5], "<f4").tobytes()
    bench.ask(0, Sample(1, fork=(0, 3)))
    [fork] = [m for m in bench.group(0).members if m.fork == 0]
    assert token_versions(fork).tolist() == [3, 3, 4]
    old = floats(for_training(fork, 4))
    assert old[:2].tolist() == [-1.25, -2.5]
    assert np.isnan(old[2])


def test_a_fork_is_streamed_from_its_first_token() -> None:
    bench = Bench(tries=30.0, stream=True)
    bench.begin()
    bench.tokens(1, 5)
    bench.ask(0, Sample(1, fork=(1, 3)))
    [hint] = only(bench.tokens(3, 2), StreamTokens)
    assert (hint.offset, len(hint.tokens) // 4) == (0, 5)


def test_a_resume_keeps_a_fork_and_places_it_among_the_new_ones(bench: Bench) -> None:
    bench.ask(0, Sample(1, fork=(1, 3)))
    state: Any = msgspec.msgpack.decode(
        msgspec.msgpack.encode(snapshot.take(bench.coordinator)), type=snapshot.Snapshot
    )
    again = Coordinator(bench.settings, bench.core.plugins, [5] * 50)
    snapshot.restore(again, state, 0.0)
    fork = again.core.trajectories[3]
    assert (fork.fork, fork.prefix, fork.held, fork.state) == (1, 3, 3, TrajectoryState.QUEUED)
    assert again.core.ledger.imbalance == 0


def test_entropies_of_a_fork_are_looked_at_from_its_first_token(bench: Bench) -> None:
    bench.ask(0, Sample(1, fork=(1, 3)))
    fork = bench.member(3)
    assert fork.entropy is None
    keep(fork, piece_of(3, [-0.5] * 3, entropies=[1.0, 2.0, 3.0]), 0)
    assert fork.entropy == 2.0
