"""What a recording knows: its responses, its pace and its figures, gathered while it is replayed.

Turns events and commands, as they come, into the workload and the machines of a simulation. A
response is known as far as its engine sampled it: tokens that came after it was aborted belong to
it as well.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from pipeline.coordinator.events import (
    AnyCommand,
    AnyEvent,
    EngineJoined,
    Generate,
    Report,
    RequestReward,
    RewardMissing,
    RewardReady,
    StepDone,
    Tokens,
    WeightsLoaded,
)
from pipeline.hardware.costs import EngineCost, LearnerCost, Machines
from pipeline.hardware.latency_model import LatencyModel
from pipeline.simulation.recorded_workload import RecordedMember

_LEARNER = ("backward_s", "optimizer_s", "publish_s")


class _Timeline(msgspec.Struct):
    """One response, as far as its frames show it."""

    leg: int = 0
    logprobs: bytearray = msgspec.field(default_factory=bytearray)
    finish: str = ""
    scored: bool = False
    reward: float | None = None


class Collected:
    """An observer of a replay. `groups` and `machines` are asked when it is over."""

    def __init__(self) -> None:
        self._timelines: defaultdict[int, _Timeline] = defaultdict(_Timeline)
        self._prompts: dict[int, int] = {}  # group -> prompt, training groups only
        self._members: dict[int, list[int]] = {}  # group -> trajectories, by their number in it
        self._again: set[int] = set()  # groups of a prompt that was deferred
        self._engines: dict[str, int] = {}  # -> slots
        self._asked: dict[int, float] = {}  # trajectory -> when its reward was asked for
        self._reward_s: list[float] = []
        self._load_s: list[float] = []
        self._stepped_at: float | None = None
        self._learner: list[dict[str, float]] = []
        self._trained_tokens = 0.0
        self.steps = 0

    def record_event(self, now: float, event: AnyEvent, commands: Sequence[AnyCommand]) -> None:
        match event:
            case Tokens():
                self._tokens(event)
            case RewardReady(trajectory=trajectory, value=value):
                self._scored(now, trajectory, value)
            case RewardMissing(trajectory=trajectory):
                self._scored(now, trajectory, None)
            case EngineJoined(engine=engine, slots=slots):
                self._engines[engine] = slots
            case StepDone(rank=0, metrics=metrics):
                self._learner.append(metrics)
                self._stepped_at = now
            case WeightsLoaded() if self._stepped_at is not None:
                self._load_s.append(now - self._stepped_at)
                self._stepped_at = None
            case _:
                pass
        for command in commands:
            self._command(now, command)

    def _command(self, now: float, command: AnyCommand) -> None:
        match command:
            case Generate(trajectory=trajectory, leg=leg, prefix=prefix):
                timeline = self._timelines[trajectory]
                timeline.leg = leg
                del timeline.logprobs[len(prefix) :]  # the next leg continues from here
                # what a fork began with is not its own: whose it is, is not looked for
                timeline.logprobs += bytes(len(prefix) - len(timeline.logprobs))
            case RequestReward(trajectory=trajectory):
                self._asked[trajectory] = now
            case Report(what="group", fields=fields) if fields["kind"] == "train":
                group = fields["group"]
                self._prompts[group] = fields["prompt"]
                self._members[group] = [member[0] for member in fields["members"]]
                self._again |= {group} if fields["attempt"] else set()
            case Report(what="step", fields=fields):
                self.steps += 1
                self._trained_tokens += fields["tokens_trained"]
            case _:
                pass

    def _tokens(self, event: Tokens) -> None:
        begin = 0
        for chunk in event.chunks:
            end = begin + 4 * chunk.count
            timeline = self._timelines[chunk.trajectory]
            if chunk.leg == timeline.leg and 4 * chunk.offset == len(timeline.logprobs):
                timeline.logprobs += event.logprobs[begin:end]
                timeline.finish = chunk.finish
            begin = end

    def _scored(self, now: float, trajectory: int, value: float | None) -> None:
        timeline = self._timelines[trajectory]
        timeline.scored, timeline.reward = True, value
        if (asked := self._asked.pop(trajectory, None)) is not None:
            self._reward_s.append(now - asked)

    # --- what is known ----------------------------------------------------------------------

    def groups(self, max_tokens: int) -> list[tuple[int, list[RecordedMember]]]:
        """(prompt, members) of the training groups that ended, in order of opening."""
        return [
            (
                self._prompts[group],
                [self._member(self._timelines[one], max_tokens) for one in self._members[group]],
            )
            for group in sorted(self._members)
        ]

    def prompts(self) -> list[int]:
        """In the order in which they were opened; one that was deferred and came back, once."""
        found: list[int] = []
        for group in sorted(self._prompts):
            if group not in self._again or self._prompts[group] not in found:
                found.append(self._prompts[group])
        return found

    @staticmethod
    def _member(timeline: _Timeline, max_tokens: int) -> RecordedMember:
        tokens = len(timeline.logprobs) // 4
        hit_limit = timeline.finish == "length" and tokens >= max_tokens
        return RecordedMember(
            tokens=tokens,
            whole=timeline.finish == "stop" or hit_limit,
            hit_limit=hit_limit,
            scored=timeline.scored,
            reward=timeline.reward,
            logprobs=bytes(timeline.logprobs),
        )

    def machines(self, latency: LatencyModel, ranks: int, chunk_tokens: int) -> Machines:
        """The machines of the recording: its engines' latency curve, its learner's pace."""
        work = {
            name: [metrics[name] for metrics in self._learner if name in metrics]
            for name in _LEARNER
        }
        return Machines(
            engines=max(1, len(self._engines)),
            slots=max(self._engines.values(), default=1),
            engine=EngineCost(points=latency.points, load_s=_median(self._load_s)),
            learner=LearnerCost(
                train_s=sum(work["backward_s"]) / max(1.0, self._trained_tokens),
                step_s=_median(work["optimizer_s"]),
                publish_s=_median(work["publish_s"]),
            ),
            ranks=ranks,
            chunk_tokens=chunk_tokens,
            reward_s=_median(self._reward_s),
        )


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0
