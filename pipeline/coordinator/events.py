"""Events go into the coordinator, commands come out of it.

Plain frozen values without sockets or clocks: the stage makes events of
messages and messages of commands, tests and the simulation do the same.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline.coordinator.rollouts import Rollout
from pipeline.wire.fields import PacedSteps
from pipeline.wire.messages import ChunkHead, LegTimes, Piece, StreamedChunk, TrainMember


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of the events."""


class EngineJoined(Event, frozen=True, kw_only=True):
    """A worker is connected; it serves no version until `WeightsLoaded`."""

    engine: str
    epoch: int
    slots: int
    latency: tuple[tuple[int, float], ...] = ()  # (running, seconds per token); () not measured


class EngineLost(Event, frozen=True, kw_only=True):
    engine: str
    why: str


class Tokens(Event, frozen=True, kw_only=True):
    """One data-plane frame, decoded and checked."""

    engine: str
    epoch: int
    sequence: int
    sampled: int
    chunks: tuple[ChunkHead, ...]
    tokens: bytes  # int32
    logprobs: bytes  # float32
    sent_s: float = 0.0  # in the stage's clock; 0.0: not known
    times: tuple[LegTimes, ...] = ()  # of the legs that end here, in the stage's clock


class WeightsLoaded(Event, frozen=True, kw_only=True):
    """An engine has loaded a version; `gap` is its largest probe difference (nats)."""

    engine: str
    version: int
    gap: float
    proved: bool = False  # False: it could be the version before, or hold a part of it
    tensors_checked: int = 0  # held by the engine, and equal
    tensors: int = 0  # published
    paced: PacedSteps = PacedSteps()  # since the load before


class WeightsFailed(Event, frozen=True, kw_only=True):
    engine: str
    version: int
    why: str


class RewardReady(Event, frozen=True, kw_only=True):
    trajectory: int
    value: float
    parts: dict[str, float] = {}
    times: tuple[float, float] | None = None  # when a worker began and ended


class RewardMissing(Event, frozen=True, kw_only=True):
    """The reward function failed: the member is missing from its group, never a zero."""

    trajectory: int
    why: str


class TurnAnswered(Event, frozen=True, kw_only=True):
    """The environment has answered a turn."""

    trajectory: int
    turn: int
    over: bool  # nothing: the response is complete
    tokens: bytes = b""  # int32, to be appended
    memory: Any = None
    times: tuple[float, float] | None = None  # when a worker began and ended


class TurnFailed(Event, frozen=True, kw_only=True):
    """The environment did not answer: the member is missing, never a wrong one."""

    trajectory: int
    turn: int
    why: str


class LearnerJoined(Event, frozen=True, kw_only=True):
    rank: int


class LearnerLost(Event, frozen=True, kw_only=True):
    rank: int
    why: str


class Published(Event, frozen=True, kw_only=True):
    """The version that a fresh or resumed learner starts from."""

    version: int


class GroupTrained(Event, frozen=True, kw_only=True):
    rank: int
    group: int
    tokens: float
    metrics: dict[str, float] = {}


class GroupFailed(Event, frozen=True, kw_only=True):
    rank: int
    group: int
    why: str


class OldLogprobs(Event, frozen=True, kw_only=True):
    """A rank has computed these under the weights of `version`."""

    rank: int
    version: int
    pieces: tuple[Piece, ...]


class VersionClosed(Event, frozen=True, kw_only=True):
    """The rank's answer to `CloseVersion`: it has sent what it could."""

    rank: int
    version: int


class StepDone(Event, frozen=True, kw_only=True):
    rank: int
    step: int
    version: int
    metrics: dict[str, float] = {}


class StepSkipped(Event, frozen=True, kw_only=True):
    rank: int
    step: int
    why: str


class Checkpointed(Event, frozen=True, kw_only=True):
    """The checkpoint that was asked for is on disk, or is not (`error`)."""

    step: int
    error: str = ""


class Tick(Event, frozen=True, kw_only=True):
    """Time has passed; sent about once a second."""


class Halt(Event, frozen=True, kw_only=True):
    """Cut a checkpoint and end. `error`: the run failed; '' for Ctrl-C."""

    error: str = ""


class Command(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of the commands."""


class Generate(Command, frozen=True, kw_only=True):
    """Start a leg on an engine; the stage adds the prompt's tokens."""

    engine: str
    kind: str  # train | eval
    prompt: int
    trajectory: int
    leg: int
    prefix: bytes
    max_tokens: int
    seed: int
    since: float = 0.0  # when it began to wait for a slot
    greedy: bool = False  # at temperature 0
    variant: str = ""  # stands behind the prompt


class AbortLegs(Command, frozen=True, kw_only=True):
    engine: str
    legs: tuple[tuple[int, int], ...]


class RequestReward(Command, frozen=True, kw_only=True):
    """Score an ended trajectory; answered by RewardReady or RewardMissing."""

    kind: str
    prompt: int
    group: int
    trajectory: int
    tokens: bytes
    finish: str  # stop | length
    appended: tuple[tuple[int, int], ...] = ()  # (first, count) of tokens that were not sampled
    step: int = 0  # steps done
    steps: int = 0  # of the run
    variant: str = ""  # behind the prompt
    together: tuple[int, ...] = ()
    """Trajectories that are judged in one call, all of which are asked about now: by the reward's
    `score_group`. Empty: it is judged alone."""


class CancelReward(Command, frozen=True, kw_only=True):
    """The reward is not wanted any more."""

    trajectory: int


class CallEnvironment(Command, frozen=True, kw_only=True):
    """A turn is over; answered by TurnAnswered or TurnFailed."""

    kind: str
    prompt: int
    group: int
    trajectory: int
    turn: int  # from 0
    tokens: bytes  # of the response
    appended: tuple[tuple[int, int], ...]
    finish: str  # stop | length
    left: int  # tokens that the response may still have
    memory: Any = None
    variant: str = ""  # behind the prompt


class CancelEnvironmentCall(Command, frozen=True, kw_only=True):
    """The answer is not wanted any more: the call is ended."""

    trajectory: int


class TrainGroup(Command, frozen=True, kw_only=True):
    rank: int
    step: int
    group: int
    prompt: int
    members: tuple[TrainMember, ...]  # without prompts: the stage adds those of `variants`
    variants: dict[int, str] = {}  # of the members that have one


class StreamTokens(Command, frozen=True, kw_only=True):
    """Tokens for a rank's cached forward while their trajectory is still sampled."""

    rank: int
    group: int
    prompt: int
    trajectory: int
    offset: int  # response tokens streamed before
    tokens: bytes  # int32
    variant: str = ""  # behind the prompt


class DropStream(Command, frozen=True, kw_only=True):
    """These trajectories are of no use to the rank any more."""

    rank: int
    trajectories: tuple[int, ...]


class ForgetGroup(Command, frozen=True, kw_only=True):
    rank: int
    group: int


class CloseVersion(Command, frozen=True, kw_only=True):
    """Have a rank compute logprobs before its weights change; answered by VersionClosed."""

    rank: int
    version: int
    prompts: dict[int, int]  # group -> its prompt, of every group named in `chunks`
    chunks: tuple[StreamedChunk, ...]  # whole responses
    variants: dict[int, str] = {}  # of the trajectories in `chunks` that have one


class CloseStep(Command, frozen=True, kw_only=True):
    """Tells every rank that all groups are in: scale by the normaliser and step."""

    step: int
    groups: tuple[int, ...]
    normaliser: float


class LoadWeights(Command, frozen=True, kw_only=True):
    """Have an engine load a version and prove it."""

    engine: str
    version: int


class Checkpoint(Command, frozen=True, kw_only=True):
    """Write a checkpoint of this very moment."""

    step: int
    version: int


class AbandonCheckpoint(Command, frozen=True, kw_only=True):
    """The checkpoint that is being written takes too long; answered by Checkpointed."""

    seconds: float  # since it was asked for


class Restart(Command, frozen=True, kw_only=True):
    """The peer is not to be trusted any more: end its process, start another."""

    peer: str
    why: str


class Report(Command, frozen=True, kw_only=True):
    """A record for people and files: `what` names it, `fields` are its columns."""

    what: str  # decision | group | step | eval | wait | warning
    fields: dict[str, Any]


class KeepRollouts(Command, frozen=True, kw_only=True):
    """Responses of one group to which nothing more happens, for people to read."""

    step: int  # from 0
    group: int
    prompt: int
    attempt: int
    version: int  # of the learner
    fate: str  # of the group: trained | dropped | deferred; open: it goes on without these
    why: str
    rollouts: tuple[Rollout, ...]


class Shutdown(Command, frozen=True, kw_only=True):
    error: str = ""


AnyEvent = (
    EngineJoined
    | EngineLost
    | Tokens
    | WeightsLoaded
    | WeightsFailed
    | RewardReady
    | RewardMissing
    | TurnAnswered
    | TurnFailed
    | LearnerJoined
    | LearnerLost
    | Published
    | GroupTrained
    | GroupFailed
    | OldLogprobs
    | VersionClosed
    | StepDone
    | StepSkipped
    | Checkpointed
    | Tick
    | Halt
)
AnyCommand = (
    Generate
    | AbortLegs
    | RequestReward
    | CancelReward
    | CallEnvironment
    | CancelEnvironmentCall
    | TrainGroup
    | ForgetGroup
    | StreamTokens
    | DropStream
    | CloseVersion
    | CloseStep
    | LoadWeights
    | Checkpoint
    | AbandonCheckpoint
    | Restart
    | Report
    | KeepRollouts
    | Shutdown
)
