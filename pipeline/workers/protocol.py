"""Messages between the stage and its workers: JSON, preceded by its length.

JSON, since a data set may hold integers that are too large for msgpack. Never pickle:
a worker runs other people's code, so its answer can only be one of `Answer`.
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
    """First message to a worker: what to build, and what it may use."""

    plugin: Plugin
    limits: ResourceLimits
    directory: str  # to work in
    parent: int
    kind: str = "reward"  # kind of plug-in: reward | environment


class Call(msgspec.Struct, frozen=True, tag=True):
    """Score these together; each has the fields of a `Sampled`, or of an environment's `Turn`."""

    samples: list[dict[str, Any]]
    whole: bool = False  # they are a group, for the reward's `score_group`


class Check(msgspec.Struct, frozen=True, tag=True):
    """Check the answers of samples that have no response yet."""

    samples: list[dict[str, Any]]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The plug-in is built."""


class Done(msgspec.Struct, frozen=True, tag=True):
    value: float
    parts: dict[str, float]


class Abstained(msgspec.Struct, frozen=True, tag=True):
    """The reward has no opinion on this response."""


class Follows(msgspec.Struct, frozen=True, tag=True):
    """An environment's answer: the response is `over`, or something is appended."""

    over: bool
    text: str = ""
    tokens: tuple[int, ...] = ()
    memory: Any = None


class Failure(msgspec.Struct, frozen=True, tag=True):
    why: str
    traceback: str


class Scores(msgspec.Struct, frozen=True, tag=True):
    """Answer to a call: one entry for each of its samples."""

    found: list[Done | Abstained | Follows | Failure]
    begun: float  # this machine's monotonic clock
    ended: float


class Checked(msgspec.Struct, frozen=True, tag=True):
    """A complaint for each sample, '' for none; an empty list if the plug-in checks none."""

    complaints: list[str]


Order = Setup | Call | Check
Answer = Ready | Scores | Checked | Failure
_answers = msgspec.json.Decoder(Answer)
_orders = msgspec.json.Decoder(Order)
_encoder = msgspec.json.Encoder()


def frame_message(message: Order | Answer) -> bytes:
    content = _encoder.encode(message)
    return len(content).to_bytes(LENGTH_BYTES, "little") + content


def make_call(samples: Sequence[Sampled | Turn], *, whole: bool = False) -> Call:
    return Call([msgspec.structs.asdict(sample) for sample in samples], whole)


def make_check(samples: Sequence[Sampled]) -> Check:
    return Check([msgspec.structs.asdict(sample) for sample in samples])


def decode_order(content: bytes) -> Order:
    """Decode a message of the stage to its worker."""
    return _orders.decode(content)


def decode_answer(content: bytes) -> Answer:
    """Decode an answer of a worker. Raises msgspec.DecodeError if it is none."""
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
