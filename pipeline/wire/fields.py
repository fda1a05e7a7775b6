"""Types that messages are made of: ranges of their fields, and parts that are no message alone."""

from __future__ import annotations

from typing import Annotated

import msgspec

_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*\Z"
Name = Annotated[str, msgspec.Meta(max_length=64, pattern=_NAME)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""A count that a float64 still holds exactly."""
Seed = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Slots = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
Seconds = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
"""Finite: NaN fails both comparisons."""
MAX_SCALAR = 1e12
Scalar = Annotated[float, msgspec.Meta(ge=-MAX_SCALAR, le=MAX_SCALAR)]
"""Any finite number."""
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
MOST_WORDS = 256
Words = Annotated[str, msgspec.Meta(max_length=MOST_WORDS)]
"""Text that is shown to people."""
MAX_LOGPROB = 1e-3
"""Largest logprob: at most 0, but float32 rounding may lift it a little above."""


class WireError(Exception):
    """A frame that the other end should not have sent."""

    sender: bytes = b""
    """Identity of the peer that sent it, if known."""


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """What a rank computed of consecutive response tokens of one trajectory."""

    trajectory: Count
    first: Count
    """Position of the first of them within the response."""
    logprobs: bytes  # float32
    entropies: bytes = b""  # float32, nats, of the distribution of each; empty: not computed

    def adds_up(self) -> bool:
        """Returns True if it holds whole numbers, and as many entropies as logprobs, or none."""
        whole = len(self.logprobs) % 4 == 0
        return whole and len(self.entropies) in (0, len(self.logprobs))


class LegTimes(msgspec.Struct, frozen=True, array_like=True):
    """Times of a leg that has ended; seconds of the engine's monotonic clock."""

    trajectory: Count
    leg: Count
    begun_s: Seconds  # the request arrived
    first_s: Seconds  # its first token was sampled; 0.0: it has none
    last_s: Seconds  # it finished


class Span(msgspec.Struct, frozen=True, array_like=True):
    """A piece of work of a peer; seconds of its monotonic clock."""

    what: Words
    start_s: Seconds
    end_s: Seconds
    of: tuple[Count, ...] = ()  # groups, step or version that it was for
    asked_s: tuple[Seconds, ...] = ()  # when the order for each of those arrived


class StreamedChunk(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of a trajectory that may be trained on."""

    group: Count
    trajectory: Count
    offset: Count
    """Response tokens of it that were streamed before."""
    tokens: bytes  # int32


class Drawing(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn from a model's distribution.

    `min_p` is applied first, then `top_k`, then `top_p` to what is left; the probabilities of the
    tokens left are divided by their sum.
    """

    temperature: Amount = 1.0  # 0: the likeliest token, with its logprob at temperature 1
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0  # probability of the tokens drawn from
    top_k: Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)] = 0  # number of them; 0: all
    min_p: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0  # least, over that of the likeliest

    @property
    def whole(self) -> bool:
        """True if every token may be drawn."""
        return self.top_p == 1.0 and not self.top_k and not self.min_p


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One leg of a trajectory: sample after prompt + prefix."""

    trajectory: Count
    leg: Count
    prompt: bytes  # int32
    prefix: bytes  # int32, response tokens already held (empty on the first leg)
    max_tokens: Count  # still to be sampled at most
    drawing: Drawing
    seed: Seed
    paced: bool = True
    """False: an emulated pace does not hold it back."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One published version of the weights, and how to check that it was loaded."""

    version: Count
    directory: str  # holds model.safetensors
    bytes: Count
    checksum: str  # xxh3_128 of model.safetensors
    probe: list[int]  # token ids, longer than one KV block
    logprobs: dict[
        str, list[float]
    ]  # temperature -> learner's logprob of probe[i + 1] given before
    tensors: dict[str, str] = {}
    """Hugging Face name -> xxh3_64 of the tensor's bytes in the file; {}: not known."""
    unlisted: Count = 0
    """Tensors of the file that are not in `tensors`, and so cannot be checked."""
    rounded_after: bool = False
    """The file's weights were rounded, the learner's logprobs are of those before."""


class PacedSteps(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of an engine that an emulated pace held back, and those in which the real engine was
    the slower one."""

    steps: Count = 0
    late: Count = 0
    late_s: Amount = 0.0  # seconds, sum over the late ones

    def plus(self, more: PacedSteps) -> PacedSteps:
        """Return the counts of both."""
        return PacedSteps(
            steps=self.steps + more.steps,
            late=self.late + more.late,
            late_s=self.late_s + more.late_s,
        )
