"""What the stage and its workers say to each other: JSON with its length before it.

JSON, since a data set may hold integers that msgpack has no room for. Never pickled:
a worker runs other people's code, and what it answers is only ever one of `Answer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline.config.schema import Plugin
from pipeline.plugins.views import Sampled, Turn
from pipeline.system.terminal_text import printable
from pipeline.workers.resource_limits import ResourceLimits

LENGTH_BYTES = 4
MAX_ANSWER_BYTES = 1 << 20
_WHY_CHARACTERS, _TRACE_CHARACTERS = 2000, 20_000


class Setup(msgspec.Struct, frozen=True, tag=True):
    """First to every worker: what to build, and what it may use."""

    plugin: Plugin
    limits: ResourceLimits
    directory: str  # to work in
    parent: int
    kind: str = "reward"  # that the plug-in is of: reward | environment


class Call(msgspec.Struct, frozen=True, tag=True):
    """Score these, together; each has the fields of a `Sampled`, or of a `Turn` for an
    environment."""

    samples: list[dict[str, Any]]


class Check(msgspec.Struct, frozen=True, tag=True):
    """Look at the answers of these, which nobody has responded to."""

    samples: list[dict[str, Any]]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The plug-in is built."""


class Done(msgspec.Struct, frozen=True, tag=True):
    value: float
    parts: dict[str, float]


class Abstained(msgspec.Struct, frozen=True, tag=True):
    """The reward has no opinion on this response."""


class Follows(msgspec.Struct, frozen=True, tag=True):
    """What an environment answered: that the response is `over`, or what is appended."""

    over: bool
    text: str = ""
    tokens: tuple[int, ...] = ()
    memory: Any = None


class Failure(msgspec.Struct, frozen=True, tag=True):
    why: str
    traceback: str


class Scores(msgspec.Struct, frozen=True, tag=True):
    """Of a call, one for each of its samples."""

    found: list[Done | Abstained | Follows | Failure]
    begun: float  # this machine's monotonic clock
    ended: float


class Checked(msgspec.Struct, frozen=True, tag=True):
    """A complaint for each sample, '' for none; nothing at all if the plug-in checks none."""

    complaints: list[str]


Order = Setup | Call | Check
Answer = Ready | Scores | Checked | Failure
_answers = msgspec.json.Decoder(Answer)
_orders = msgspec.json.Decoder(Order)
_encoder = msgspec.json.Encoder()


def framed(message: Order | Answer) -> bytes:
    content = _encoder.encode(message)
    return len(content).to_bytes(LENGTH_BYTES, "little") + content


def call(samples: Sequence[Sampled | Turn]) -> Call:
    return Call([msgspec.structs.asdict(sample) for sample in samples])


def check(samples: Sequence[Sampled]) -> Check:
    return Check([msgspec.structs.asdict(sample) for sample in samples])


def order(content: bytes) -> Order:
    """Of the stage, to its worker."""
    return _orders.decode(content)


def answer(content: bytes) -> Answer:
    """Of a worker. Raises msgspec.DecodeError if it is none."""
    found = _answers.decode(content)
    if isinstance(found, Failure):
        return _printable(found)
    if isinstance(found, Scores):
        every = [_printable(f) if isinstance(f, Failure) else f for f in found.found]
        return msgspec.structs.replace(found, found=every)
    return found


def _printable(failure: Failure) -> Failure:
    why, trace = failure.why[:_WHY_CHARACTERS], failure.traceback[-_TRACE_CHARACTERS:]
    return Failure(printable(why), printable(trace))
