"""Tokens go to the rank that will train on them, while their trajectories still run."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from pipeline.coordinator.events import DropStream, StreamTokens, TrainGroup
from pipeline.plugins.actions import Abort, Finalize
from tests.pipeline.coordinator.bench import Bench, only
from tests.pipeline.coordinator.world import World, plugins_of, settings_of


def test_every_token_is_hinted_once_in_order_to_the_rank_that_trains_on_it() -> None:
    bench = Bench(need=2, stream=True, ranks=2)
    bench.begin()
    [first] = only(bench.tokens(3, 4), StreamTokens)
    assert (first.rank, first.group, first.trajectory, first.offset) == (1, 1, 3, 0)
    assert len(np.frombuffer(first.tokens, "<i4")) == 4
    [second] = only(bench.tokens(3, 3, "stop"), StreamTokens)
    assert (second.offset, len(second.tokens)) == (4, 12)
    bench.tokens(4, 2, "stop")
    commands = bench.ask(1, Finalize((3, 4)))
    commands += bench.reward(3, 1.0)
    commands += bench.reward(4, 0.0)
    [train] = only(commands, TrainGroup)
    assert train.rank == 1


def test_an_aborted_member_and_an_ended_group_are_let_go() -> None:
    bench = Bench(need=1, stream=True)
    bench.begin()
    bench.tokens(0, 4)
    assert only(bench.ask(0, Abort((0,))), DropStream) == [DropStream(rank=0, trajectories=(0,))]
    bench.tokens(1, 2, "stop")
    gone = only(bench.tokens(2, 2, "stop"), DropStream)
    assert gone == [DropStream(rank=0, trajectories=(1, 2))], "nobody chose: the group is dropped"


def test_without_a_consumer_nothing_is_hinted() -> None:
    bench = Bench(need=1)
    bench.begin()
    assert not only(bench.tokens(0, 4), StreamTokens)


@pytest.mark.parametrize("selector", ["first_m", "dual_end"])
def test_whatever_happens_hints_are_whole_and_nothing_is_kept_for_ever(selector: str) -> None:
    for seed in range(15):
        settings = settings_of(seed=seed, stream=True, ranks=2, overlap="token")
        world = World(seed, settings, plugins_of(selector, seed=seed), faults=0.1)
        world.start()
        world.run()
        held: dict[tuple[int, int], bytes] = defaultdict(bytes)
        trained = 0
        for command in world.commands:
            match command:
                case StreamTokens():
                    key = (command.rank, command.trajectory)
                    assert command.offset == len(held[key]) // 4, "a hole in the hints"
                    held[key] += command.tokens
                case DropStream():
                    for trajectory in command.trajectories:
                        del held[command.rank, trajectory]
                case TrainGroup():
                    for member in command.members:
                        assert held[command.rank, member.trajectory] == member.response
                        trained += 1
                case _:
                    pass
        assert trained
        assert not held, "a rank was never told to let go"
