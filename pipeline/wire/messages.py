"""Defines every message that crosses a socket: tagged, typed, frozen (`codec` encodes them).

Token ids travel as raw little-endian int32, logprobs as float32 (nats), so that nothing
is copied per token.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.wire.fields import (
    Amount,
    Count,
    LegTimes,
    Manifest,
    Name,
    PacedSteps,
    Piece,
    Request,
    Scalar,
    Seconds,
    Slots,
    Span,
    StreamedChunk,
    WireError,
    Words,
)

PROTOCOL = 9
"""Grows with every change of a message; peers of another version are refused."""

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of every tagged message."""


# --- data plane: engine -> stage ---------------------------------------------------------


class ChunkHead(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive new tokens of one leg; the numbers are in frames 1 and 2."""

    trajectory: Count
    leg: Count
    offset: Count
    """Response tokens that the trajectory held before this chunk."""
    count: Count
    version: Count
    """Policy version that sampled these tokens; a chunk has one."""
    finish: str = ""
    """'' (more follows), 'stop' (sampled a stop token), 'length', 'abort' or 'error'.
    Every leg ends in band exactly once with one of these; that frees its slot."""
    score: Scalar | None = None
    """What the engine thinks of the response so far, on a scale of its own; None: nothing."""
    remaining: Amount | None = None  # tokens that it expects after this chunk, if it predicts
    marked: Count | None = None  # response tokens up to its first marker, where it ends here


FINISHES = frozenset({"", "stop", "length", "abort", "error"})


class TokenBatch(Message, frozen=True, kw_only=True):
    """Header of one flush of an engine; an empty one is its in-band heartbeat.

    Frame 1: int32 tokens, frame 2: float32 logprobs, the chunks one after
    another in the order of `chunks`.
    """

    engine: Name
    incarnation: Count  # of the stage that it joined
    epoch: Count  # given at join; an older epoch is refused
    sequence: Count  # from 0 without gaps within an epoch: a gap is a lost frame
    sampled: Count  # response tokens sampled by this epoch so far, this frame included
    sent_at_s: Seconds  # the engine's monotonic clock
    chunks: tuple[ChunkHead, ...] = ()
    times: tuple[LegTimes, ...] = ()  # of the legs that end in this frame


# --- control plane: a peer -> stage --------------------------------------------------------


class Join(Message, frozen=True, kw_only=True):
    """First message of an engine or a learner rank; repeatable."""

    protocol: Count
    role: str  # "engine" | "learner"
    name: Name
    rank: Count = 0
    world: Count = 1
    slots: Slots = 0  # engines: sequences that may run at once
    latency: Annotated[  # engines: (running, seconds per token)
        tuple[tuple[Slots, Amount], ...], msgspec.Meta(max_length=1024)
    ] = ()
    vocabulary: Count = 0  # rows of the embedding
    max_model_tokens: Count = 0  # prompt and response together; 0: no limit known
    resumed_step: int = -1  # learners: the checkpoint they loaded, -1 for none
    clock_s: Seconds = 0.0  # the peer's monotonic clock, for aligned traces
    boot: Words = ""  # names its kernel's boot: within one, monotonic clocks are one clock
    about: Annotated[  # versions of libraries, device; logged
        dict[Words, Words], msgspec.Meta(max_length=64)
    ] = {}


class Heartbeat(Message, frozen=True, kw_only=True):
    """Sent by a thread of its own every second: alive. `progress`: working."""

    progress: Count  # moved by the working loop
    activity: Words  # what the working loop does now; "idle" has no limit
    budget_s: Amount  # how long `progress` may stand still in this activity
    clock_s: Seconds = 0.0  # the peer's monotonic clock
    echo_s: Seconds = 0.0  # the stage's clock in the newest `Alive` received; 0.0: none yet
    held_s: Seconds = 0.0  # seconds since that arrived


FORWARD_BACKWARD, OLD_LOGPROBS = "forward and backward", "old and reference logprobs"
CLOSE, CLOSE_WITH_PASSES = "optimizer step", "passes and optimizer steps"
PUBLISH = "publishing weights"
SAVE = "writing a checkpoint"


class Spans(Message, frozen=True, kw_only=True):
    """Work of a peer since its last report; sent before the answer to that work."""

    spans: tuple[Span, ...]
    hints: tuple[tuple[Seconds, Seconds], ...] = ()
    """For each `StreamedTokens`: the stage's clock when it was sent, the peer's on arrival."""


class WeightsLoaded(Message, frozen=True, kw_only=True):
    """An engine has loaded `version`, and nothing shows that it serves another one."""

    version: Count
    gaps: dict[str, float]  # temperature -> largest |engine logprob - learner logprob|
    proved: bool = False  # False: the engine cannot tell this version from the one before
    tensors_checked: Count = 0  # published tensors that the engine holds, and that are equal
    tensors: Count = 0  # published tensors
    paced: PacedSteps = PacedSteps()  # since the load before


class WeightsFailed(Message, frozen=True, kw_only=True):
    version: Count
    why: str


class GroupTrained(Message, frozen=True, kw_only=True):
    """A rank has accumulated the gradient of a group (not yet applied)."""

    step: Count
    group: Count
    tokens: Amount  # sum of member weight x token mask: this group's part of N
    metrics: dict[str, float] = {}  # sums over tokens, named by the loss


class GroupFailed(Message, frozen=True, kw_only=True):
    """The group is not in the gradient: its loss was not finite."""

    step: Count
    group: Count
    why: str


class OldLogprobs(Message, frozen=True, kw_only=True):
    """Logprobs under the weights of `version`, of tokens that a later one may train on."""

    version: Count
    pieces: tuple[Piece, ...]


class VersionClosed(Message, frozen=True, kw_only=True):
    """Answer to `CloseVersion`: no more `OldLogprobs` for it will come."""

    version: Count


class StepDone(Message, frozen=True, kw_only=True):
    """A rank has applied the step; rank 0 has published the weights and sends the manifest."""

    step: Count
    version: Count
    manifest: Manifest | None = None
    metrics: dict[str, float] = {}


class StepSkipped(Message, frozen=True, kw_only=True):
    """Gradients were not finite twice: weights and version are unchanged."""

    step: Count
    why: str


class OutOfMemory(Message, frozen=True, kw_only=True):
    """Memory ran out in a pass that all ranks run together (ZeRO 3): all start again from the
    checkpoint, with smaller micro-batches."""

    tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]  # most of a micro-batch from then on
    why: Words


class Published(Message, frozen=True, kw_only=True):
    """Sent after joining: the version that this learner starts from (rank 0 only)."""

    manifest: Manifest


class Saved(Message, frozen=True, kw_only=True):
    """A rank has written and fsynced its part of a checkpoint."""

    directory: str
    error: str = ""


# --- control plane: stage -> peer ------------------------------------------------------------


class Welcome(Message, frozen=True, kw_only=True):
    """Answer to `Join`. A second one starts a new epoch: forget all legs."""

    incarnation: Count
    epoch: Count
    weights_directory: str
    spare_directory: str = ""  # for a version that finds no room there; '': none


class Refused(Message, frozen=True, kw_only=True):
    """Answer to a `Join` that does not fit; the peer prints it and exits."""

    why: str


class Alive(Message, frozen=True, kw_only=True):
    """The stage's own heartbeat: a peer that misses it for long exits."""

    clock_s: Seconds = 0.0  # the stage's monotonic clock


class Generate(Message, frozen=True, kw_only=True):
    requests: tuple[Request, ...]


class AbortLegs(Message, frozen=True, kw_only=True):
    """End these legs; the finish of each is the answer. Unknown ones are ignored."""

    legs: tuple[tuple[int, int], ...]  # (trajectory, leg)


class LoadWeights(Message, frozen=True, kw_only=True):
    manifest: Manifest | None  # None: nobody publishes any; serve those of `model` as version 0


class TrainMember(msgspec.Struct, frozen=True, kw_only=True):
    """One trajectory to train on, self-contained."""

    trajectory: Count
    response: bytes  # int32
    behaviour: bytes  # float32, logprob of each token when sampled; else 0; empty: nobody knows it
    appended: tuple[tuple[Count, Count], ...] = ()
    """(first, count) of response tokens that the environment appended: never trained on."""
    reward: float
    advantage: float
    weight: float = 1.0
    truncated: bool = False
    token_advantages: bytes = b""
    """float32, advantage of each response token, 0 at appended ones, instead of `advantage`;
    empty: `advantage` holds for all of them."""
    old: bytes = b""
    """float32, logprob of each response token under the version that sampled it. NaN: the version
    is the one that the step begins with, so the rank knows it; empty: all tokens are such."""
    foreign: bool = False  # not sampled for this group
    prompt: bytes = b""
    """int32, of a member with a prompt of its own; empty: it has the group's."""

    @property
    def sampled_tokens(self) -> int:
        """Number of response tokens that the model sampled."""
        return len(self.response) // 4 - sum(count for _, count in self.appended)

    @property
    def has_advantage(self) -> bool:
        """True unless the advantage of every token is 0."""
        if self.token_advantages:
            return bool(floats(self.token_advantages).any())
        return self.advantage != 0


class TrainGroup(Message, frozen=True, kw_only=True):
    """Run forward and backward of this group now; keep it until `StepDone`."""

    step: Count
    group: Count
    prompt: bytes  # int32
    members: tuple[TrainMember, ...]

    def prompt_of(self, member: TrainMember) -> bytes:
        """The prompt that this member's response was sampled after, int32."""
        return member.prompt or self.prompt


class StreamedTokens(Message, frozen=True, kw_only=True):
    """Tokens whose logprobs a rank may compute ahead, and trajectories that it may forget."""

    prompts: dict[int, bytes]  # int32, of every group named in `chunks` for one without its own
    own: dict[int, bytes] = {}  # trajectory -> its own prompt, where it has one
    chunks: tuple[StreamedChunk, ...] = ()
    gone: tuple[int, ...] = ()  # trajectories
    sent_at_s: Seconds = 0.0  # the stage's monotonic clock

    def prompt_of(self, chunk: StreamedChunk) -> bytes:
        return self.own.get(chunk.trajectory) or self.prompts[chunk.group]


class ForgetGroup(Message, frozen=True, kw_only=True):
    group: Count


class CloseVersion(Message, frozen=True, kw_only=True):
    """The weights are about to change, and these responses may be trained on afterwards: send
    their logprobs (`OldLogprobs`), then `VersionClosed`. Stop when other work is asked for."""

    version: Count
    prompts: dict[int, bytes]  # int32, of every group named in `chunks`
    chunks: tuple[StreamedChunk, ...]  # whole responses, offset 0
    own: dict[int, bytes] = {}  # trajectory -> its own prompt, where it has one

    def prompt_of(self, chunk: StreamedChunk) -> bytes:
        return self.own.get(chunk.trajectory) or self.prompts[chunk.group]


class CloseStep(Message, frozen=True, kw_only=True):
    """The ranks have trained on all groups of the step: scale, clip, step, publish."""

    step: Count
    groups: tuple[int, ...]
    normaliser: float  # N, the sum of the `tokens` that all ranks reported


class Save(Message, frozen=True, kw_only=True):
    """Write this rank's part of a checkpoint into `directory`, without accumulated gradients."""

    directory: str
    step: Count
    version: Count


class Shutdown(Message, frozen=True, kw_only=True):
    why: str = ""  # from a learner rank: it was asked to end (SIGTERM), and stays for a checkpoint


FromPeer = (
    Join
    | Heartbeat
    | Spans
    | WeightsLoaded
    | WeightsFailed
    | GroupTrained
    | GroupFailed
    | OldLogprobs
    | VersionClosed
    | StepDone
    | StepSkipped
    | OutOfMemory
    | Published
    | Saved
    | Shutdown
)
ToPeer = (
    Welcome
    | Refused
    | Alive
    | Generate
    | AbortLegs
    | LoadWeights
    | TrainGroup
    | ForgetGroup
    | StreamedTokens
    | CloseVersion
    | CloseStep
    | Save
    | Shutdown
)


def ints(values: bytes) -> Ints:
    """View raw int32 as an array. Raises WireError if the bytes do not add up."""
    if len(values) % 4:
        raise WireError(f"{len(values)} bytes are not an int32 array")
    return np.frombuffer(values, dtype="<i4")


def floats(values: bytes) -> Floats:
    """View raw float32 as an array. Raises WireError if the bytes do not add up."""
    if len(values) % 4:
        raise WireError(f"{len(values)} bytes are not a float32 array")
    return np.frombuffer(values, dtype="<f4")
