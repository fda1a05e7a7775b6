"""Rounds: the same answers reach the coordinator alike, whenever and in whichever pieces."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.coordinator import events
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import AnyCommand, AnyEvent, Tick, Tokens
from pipeline.recording.frames import command_bytes, encode_value
from pipeline.stage.arrivals import AsTheyCome
from pipeline.stage.leg_queue import FrameLost
from pipeline.stage.rounds import ROUND_S, Rounds
from pipeline.wire.messages import ChunkHead
from tests.pipeline.coordinator.world import EOS, plugins_of, settings_of

CHUNK = 4


def taken(rounds: Rounds) -> list[AnyEvent]:
    found: list[AnyEvent] = []
    while (due := rounds.next()) is not None:
        found.append(due[0])
    return found


def joined(engine: str, epoch: int = 0) -> events.EngineJoined:
    return events.EngineJoined(engine=engine, epoch=epoch, slots=4, latency=((1, 0.1), (2, 0.2)))


def generate(trajectory: int, engine: str = "e0", held: int = 0, leg: int = 0) -> events.Generate:
    return events.Generate(
        engine=engine, kind="train", prompt=0, trajectory=trajectory, leg=leg,
        prefix=bytes(4 * held), max_tokens=20, seed=1,
    )  # fmt: skip


def frame(sequence: int, *chunks: ChunkHead, epoch: int = 0) -> Tokens:
    count = sum(chunk.count for chunk in chunks)
    return Tokens(
        engine="e0", epoch=epoch, sequence=sequence, sampled=99, chunks=chunks, sent_s=3.0,
        tokens=np.arange(count, dtype="<i4").tobytes(), logprobs=bytes(4 * count),
    )  # fmt: skip


def begun(engines: int = 1) -> Rounds:
    """Everybody is here, and the first round was handed over."""
    rounds = Rounds(engines, 1, CHUNK)
    for number in range(engines):
        rounds.put(joined(f"e{number}"))
    rounds.put(events.Published(version=0))
    rounds.put(events.LearnerJoined(rank=0))
    assert len(taken(rounds)) == engines + 2
    return rounds


def test_a_run_begins_when_all_have_joined_in_one_order():
    rounds = Rounds(2, 2, CHUNK)
    for event in (
        joined("e1"),
        events.LearnerJoined(rank=1),
        events.Published(version=0),
        joined("e0"),
        Tick(),
    ):
        rounds.put(event)
        assert taken(rounds) == []
    assert rounds.overdue(0.0).endswith("a round waits for learner 0")
    rounds.put(events.LearnerJoined(rank=0))
    found = taken(rounds)
    assert [type(event).__name__ for event in found] == [
        "EngineJoined", "EngineJoined", "LearnerJoined", "LearnerJoined", "Published",
    ]  # fmt: skip
    assert [e.engine for e in found if isinstance(e, events.EngineJoined)] == ["e0", "e1"]
    assert found[0] == events.EngineJoined(engine="e0", epoch=0, slots=4), "its profile was timed"
    assert rounds.overdue(0.0) == ""


def test_a_leg_gives_as_many_tokens_a_round_as_a_chunk_whatever_its_frames_are():
    rounds = begun()
    rounds.answered([generate(1, held=2), generate(2)])
    rounds.put(frame(0, ChunkHead(1, 0, 2, 7, 0, "")))
    assert taken(rounds) == [], "nothing of leg 2 has come"
    rounds.put(frame(1))  # a sign of life
    rounds.put(frame(2, ChunkHead(2, 0, 0, 1, 0, ""), ChunkHead(1, 0, 9, 1, 0, "stop")))
    assert taken(rounds) == []
    rounds.put(frame(3, ChunkHead(2, 0, 1, 4, 0, "length")))
    first, second = (event for event in taken(rounds) if isinstance(event, Tokens))
    assert first.chunks == (ChunkHead(1, 0, 2, 4, 0, ""), ChunkHead(2, 0, 0, 4, 0, ""))
    assert np.frombuffer(first.tokens, "<i4").tolist() == [0, 1, 2, 3, 0, 0, 1, 2]
    assert (first.sequence, first.sampled, first.sent_s) == (0, 8, 0.0)
    assert second.chunks == (ChunkHead(1, 0, 6, 4, 0, "stop"), ChunkHead(2, 0, 4, 1, 0, "length"))
    assert (second.sequence, second.sampled) == (1, 13)


def test_an_aborted_leg_ends_at_the_tokens_handed_over_however_far_its_engine_was():
    for beyond in (0, 3):
        rounds = begun()
        rounds.answered([generate(1)])
        rounds.put(frame(0, ChunkHead(1, 0, 0, CHUNK, 0, "")))
        assert taken(rounds)
        rounds.answered([events.AbortLegs(engine="e0", legs=((1, 0), (9, 0)))])
        rounds.put(frame(1, ChunkHead(1, 0, CHUNK, 3, 0, "")))
        assert taken(rounds) == [], "the engine has not said that it ended"
        rounds.put(frame(2, ChunkHead(1, 0, CHUNK + 3, beyond, 0, "stop" if beyond else "abort")))
        [end] = taken(rounds)
        assert isinstance(end, Tokens)
        assert end.chunks == (ChunkHead(1, 0, CHUNK, 0, 0, "abort"),)
        assert (end.tokens, end.sampled) == (b"", CHUNK)


def test_a_chunk_has_one_version():
    rounds = begun()
    rounds.answered([generate(1)])
    rounds.put(frame(0, ChunkHead(1, 0, 0, 3, 0, ""), ChunkHead(1, 0, 3, 2, 1, "stop")))
    chunks = [event.chunks for event in taken(rounds) if isinstance(event, Tokens)]
    assert chunks == [(ChunkHead(1, 0, 0, 3, 0, ""),), (ChunkHead(1, 0, 3, 2, 1, "stop"),)]


def test_answers_come_in_their_order_without_what_peers_timed():
    rounds = begun()
    rounds.answered(
        [
            events.RequestReward(
                kind="train", prompt=0, group=0, trajectory=t, tokens=b"", finish="stop"
            )
            for t in (2, 1, 3)
        ]
    )
    rounds.answered([events.TrainGroup(rank=0, step=0, group=5, prompt=0, members=())])
    rounds.answered([events.CancelReward(trajectory=3)])
    metrics = {"loss": 1.0, "backward_s": 0.3}
    rounds.put(events.GroupTrained(rank=0, group=5, tokens=7.0, metrics=metrics))
    rounds.put(events.RewardReady(trajectory=3, value=1.0))  # not wanted any more
    rounds.put(events.RewardReady(trajectory=2, value=1.0, times=(0.1, 0.2)))
    assert taken(rounds) == []
    rounds.put(events.RewardMissing(trajectory=1, why="it raised"))
    assert taken(rounds) == [
        events.RewardMissing(trajectory=1, why="it raised"),
        events.RewardReady(trajectory=2, value=1.0),
        events.GroupTrained(rank=0, group=5, tokens=7.0, metrics={"loss": 1.0}),
    ]


def test_the_clock_moves_by_rounds_and_by_ticks_while_nothing_is_due():
    rounds = begun()
    assert rounds.now() == pytest.approx(ROUND_S)
    rounds.put(Tick())
    assert taken(rounds) == [Tick()]
    assert rounds.now() == pytest.approx(ROUND_S + 1.0)
    rounds.answered([events.LoadWeights(engine="e0", version=0)])
    rounds.put(Tick())
    assert taken(rounds) == [], "the clock stands while a round waits: no time limit can pass"
    assert rounds.now() == pytest.approx(ROUND_S + 1.0)


def test_a_lost_engine_and_a_halt_end_waits_at_once():
    rounds = begun(engines=2)
    rounds.answered([generate(1), events.LoadWeights(engine="e0", version=0)])
    rounds.put(events.EngineLost(engine="e0", why="killed"))
    assert taken(rounds) == [events.EngineLost(engine="e0", why="killed")]
    assert rounds.overdue(0.0).endswith("a round waits for 1 engines")
    rounds.put(events.Halt())
    assert taken(rounds) == [events.Halt()]
    rounds.put(joined("e0", epoch=1))
    assert [type(event).__name__ for event in taken(rounds)] == ["EngineJoined"]
    rounds.answered([generate(1, leg=1)])
    rounds.put(frame(7, ChunkHead(1, 0, 0, 4, 0, "stop")))  # of the epoch that is over
    rounds.put(frame(0, ChunkHead(1, 1, 0, 4, 0, "stop"), epoch=1))
    [found] = taken(rounds)
    assert isinstance(found, Tokens)
    assert (found.epoch, found.sequence, found.chunks[0].leg) == (1, 0, 1)


def test_a_lost_frame_is_an_error():
    rounds = begun()
    with pytest.raises(FrameLost, match="frame 1 of e0 came, 0 was due"):
        rounds.put(frame(1))


# --- a whole run ---------------------------------------------------------------------------------


class Peers:
    """Engines, rewards and a learner that answer after delays of their own, in pieces of their own.

    What they answer follows from what they are asked; when and in which frames, from `rng`.
    """

    def __init__(self, arrivals: Any, rng: random.Random, engines: int = 2) -> None:
        self.arrivals, self.rng = arrivals, rng
        self.coordinator = Coordinator(settings_of(ranks=1), plugins_of("dual_end"), [5] * 50)
        self.trace: list[bytes] = []
        self.chosen: list[list[int]] = []  # by each action of the selector
        self.over = False
        self.sequence = dict.fromkeys((f"e{n}" for n in range(engines)), 0)
        self.sampled = dict(self.sequence)
        self.here: list[str] = []  # engines that have joined
        self.legs: dict[tuple[str, int, int], list[Any]] = {}  # -> [offset, left, aborted]
        self.waiting: list[AnyEvent] = [events.LearnerJoined(rank=0), events.Published(version=0)]
        self.waiting += [events.EngineJoined(engine=e, epoch=0, slots=6) for e in self.sequence]
        self.version = 0
        self.learner: deque[AnyCommand] = deque()

    def run(self) -> list[bytes]:
        for _ in range(200_000):
            if self.over:
                return self.trace
            self.act()
            while (due := self.arrivals.next()) is not None:
                event, now = due
                commands = self.coordinator.handle(event, now)
                self.trace.append(encode_value([now, event, [command_bytes(c) for c in commands]]))
                self.chosen += [
                    command.fields["ids"]
                    for command in commands
                    if isinstance(command, events.Report) and command.what == "decision"
                ]
                self.arrivals.answered(commands)
                for command in commands:
                    self.carry_out(command)
        raise AssertionError("the run never ends")

    def act(self) -> None:
        rng = self.rng
        match rng.choice(("wait", "engine", "engine", "learn", "tick")):
            case "wait" if self.waiting:
                event = self.waiting.pop(rng.randrange(len(self.waiting)))
                self.here += [event.engine] if isinstance(event, events.EngineJoined) else []
                self.arrivals.put(event)
            case "engine" if self.here:
                self.sample(rng.choice(sorted(self.here)))
            case "learn" if self.learner:
                self.learn(self.learner.popleft())
            case "tick":
                self.arrivals.put(Tick())
            case _:
                pass

    def carry_out(self, command: AnyCommand) -> None:
        match command:
            case events.Generate(engine=engine, trajectory=trajectory, leg=leg):
                draw = random.Random(command.seed)
                length = min(draw.randint(1, 30), command.max_tokens)
                finish = "stop" if draw.random() < 0.8 else "length"
                length = length if finish == "stop" else command.max_tokens
                held = len(command.prefix) // 4
                self.legs[engine, trajectory, leg] = [held, length, finish, False]
            case events.AbortLegs(engine=engine, legs=legs):
                for leg in legs:
                    if (found := self.legs.get((engine, *leg))) is not None:
                        found[3] = True
            case events.RequestReward(trajectory=trajectory):
                value = float(random.Random(trajectory).random() < 0.5)
                times = (self.rng.random(), self.rng.random())
                self.waiting.append(
                    events.RewardReady(trajectory=trajectory, value=value, times=times)
                )
            case events.TrainGroup() | events.CloseStep():
                self.learner.append(command)
            case events.LoadWeights(engine=engine, version=version):
                self.waiting.append(events.WeightsLoaded(engine=engine, version=version, gap=0.0))
            case events.Checkpoint(step=step):
                self.waiting.append(events.Checkpointed(step=step))
            case events.Shutdown():
                self.over = True
            case _:
                pass

    def learn(self, command: AnyCommand) -> None:
        seconds = {"backward_s": self.rng.random()}
        if isinstance(command, events.TrainGroup):
            tokens = sum(member.weight * member.sampled_tokens for member in command.members)
            done: AnyEvent = events.GroupTrained(
                rank=0, group=command.group, tokens=tokens, metrics=seconds
            )
        else:
            self.version += 1
            done = events.StepDone(
                rank=0, step=self.coordinator.core.step, version=self.version, metrics=seconds
            )
        self.arrivals.put(done)

    def sample(self, engine: str) -> None:
        chunks: list[ChunkHead] = []
        tokens: list[int] = []
        for key in [key for key in self.legs if key[0] == engine and self.rng.random() < 0.6]:
            offset, left, finish, aborted = leg = self.legs[key]
            count = min(left, self.rng.randint(0, 7))
            ends = "" if count < left else finish
            ends = ends or ("abort" if aborted else "")
            tokens += [5] * (count - 1) + [EOS if ends == "stop" else 5] if count else []
            chunks.append(ChunkHead(*key[1:], offset, count, self.version, ends))
            leg[0], leg[1] = offset + count, left - count
            if ends:
                del self.legs[key]
        self.sampled[engine] += len(tokens)
        self.arrivals.put(
            Tokens(
                engine=engine,
                epoch=0,
                sequence=self.sequence[engine],
                sampled=self.sampled[engine],
                chunks=tuple(chunks),
                tokens=np.array(tokens, "<i4").tobytes(),
                logprobs=np.full(len(tokens), -0.5, "<f4").tobytes(),
                sent_s=self.rng.random(),
            )
        )
        self.sequence[engine] += 1


def traces(seeds: Sequence[int]) -> list[list[bytes]]:
    return [Peers(Rounds(2, 1, CHUNK), random.Random(seed)).run() for seed in seeds]


def test_a_run_is_the_same_to_the_byte_however_fast_its_peers_are():
    first, *others = traces(range(8))
    assert len(first) > 100
    for other in others:
        assert other == first


def test_as_they_come_the_same_peers_give_another_run():
    runs = [Peers(AsTheyCome(), random.Random(seed)) for seed in (1, 2)]
    first, other = (peers.run() and peers.chosen for peers in runs)
    assert first != other


def test_a_score_rides_on_the_chunk_that_has_its_tokens():
    rounds = begun()
    rounds.answered([generate(1)])
    scored = (ChunkHead(1, 0, 0, 2, 0, "", 0.5, 9.0), ChunkHead(1, 0, 2, 1, 0, "", None, 8.0))
    rounds.put(frame(0, *scored))
    rounds.put(frame(1, ChunkHead(1, 0, 3, 3, 0, "stop", 0.25, 0.0)))
    found = [
        chunk for event in taken(rounds) if isinstance(event, Tokens) for chunk in event.chunks
    ]
    assert [(c.count, c.score, c.remaining) for c in found] == [(4, 0.5, 8.0), (2, 0.25, 0.0)]


def test_a_marker_rides_on_the_chunk_that_it_ends_in():
    rounds = begun()
    rounds.answered([generate(1)])
    rounds.put(frame(0, ChunkHead(1, 0, 0, 9, 0, "stop", marked=6)))
    found = [
        chunk for event in taken(rounds) if isinstance(event, Tokens) for chunk in event.chunks
    ]
    assert [(c.offset, c.count, c.marked) for c in found] == [(0, 4, None), (4, 4, 6), (8, 1, None)]
