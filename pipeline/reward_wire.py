"""What the stage and its workers say to each other: JSON with its length before it.

JSON, since a data set may hold integers that msgpack has no room for. Never pickled:
a worker runs other people's code, and what it answers is only ever one of `Answer`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline.config import Plugin
from pipeline.confinement import Limits
from pipeline.printable import printable
from pipeline.views import Sampled, Turn

LENGTH_BYTES = 4
MAX_ANSWER_BYTES = 1 << 20
_WHY_CHARACTERS, _TRACE_CHARACTERS = 2000, 20_000


class Setup(msgspec.Struct, frozen=True, tag=True):
    """First to every worker: what to build, and what it may use."""

    plugin: Plugin
    limits: Limits
    directory: str  # to work in
    parent: int
    seam: str = "reward"


class Call(msgspec.Struct, frozen=True, tag=True):
    """Score this; the fields of a `Sampled`."""

    sample: dict[str, Any]


class Ask(msgspec.Struct, frozen=True, tag=True):
    """What follows this; the fields of a `Turn`."""

    turn: dict[str, Any]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The plug-in is built."""


class Done(msgspec.Struct, frozen=True, tag=True):
    value: float
    parts: dict[str, float]
    begun: float  # this machine's monotonic clock
    ended: float


class Follows(msgspec.Struct, frozen=True, tag=True):
    """What a rollout answered: `over`, or what is appended."""

    over: bool
    text: str
    tokens: tuple[int, ...]
    memory: Any
    begun: float
    ended: float


class Failure(msgspec.Struct, frozen=True, tag=True):
    why: str
    traceback: str


Answer = Ready | Done | Follows | Failure
Question = Call | Ask
_answers = msgspec.json.Decoder(Answer)
_orders = msgspec.json.Decoder(Setup | Question)
_encoder = msgspec.json.Encoder()


def framed(message: Setup | Question | Answer) -> bytes:
    content = _encoder.encode(message)
    return len(content).to_bytes(LENGTH_BYTES, "little") + content


def call(sample: Sampled) -> Call:
    return Call(msgspec.structs.asdict(sample))


def ask(turn: Turn) -> Ask:
    return Ask(msgspec.structs.asdict(turn))


def order(content: bytes) -> Setup | Question:
    """Of the stage, to its worker."""
    return _orders.decode(content)


def answer(content: bytes) -> Answer:
    """Of a worker. Raises msgspec.DecodeError if it is none."""
    found = _answers.decode(content)
    if isinstance(found, Failure):
        why, trace = found.why[:_WHY_CHARACTERS], found.traceback[-_TRACE_CHARACTERS:]
        return Failure(printable(why), printable(trace))
    return found
