"""`python -m pipeline.workers DESCRIPTOR`: the process that runs a reward or environment.

A message over a socket says what to build and what it may use (`protocol`); an exception
of the user's code is an answer, too. It works in a directory of its own, with links to the
files beside the code (`beside`); imports are found as in the stage.
"""

from __future__ import annotations

import operator
import os
import socket
import sys
import time
import traceback
from typing import Any, BinaryIO

import msgspec

from pipeline.plugins import registry
from pipeline.plugins.actions import Append
from pipeline.plugins.rewards._results import Outcome, awaited, group_outcomes, outcomes, writable
from pipeline.plugins.views import Sampled, Turn
from pipeline.workers.beside import folders_of, link_files
from pipeline.workers.protocol import (
    LENGTH_BYTES,
    MAX_ANSWER_BYTES,
    Abstained,
    Answer,
    Call,
    Check,
    Checked,
    Done,
    Failure,
    Follows,
    Order,
    Ready,
    Scores,
    Setup,
    decode_order,
    frame_message,
)
from pipeline.workers.resource_limits import confine, die_with, limit_call


def _next(stream: BinaryIO) -> Order | None:
    """Read the next order; None: the stage is gone."""
    length = stream.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    return decode_order(stream.read(int.from_bytes(length, "little")))


def _build(setup: Setup) -> Any:
    cls = registry.find_plugin(setup.kind, setup.plugin.name)
    return cls(msgspec.convert(setup.plugin.options, registry.options_type(cls)))


def _scores(reward: Any, call: Call) -> Scores:
    begun = time.monotonic()  # the same clock as the stage's
    judge = group_outcomes if call.whole else outcomes
    found = judge(reward, [Sampled(**sample) for sample in call.samples])
    return Scores([_verdict(outcome) for outcome in found], begun, time.monotonic())


def _verdict(outcome: Outcome) -> Done | Abstained | Failure:
    if isinstance(outcome, Exception):
        return _failure(outcome)
    return Abstained() if outcome is None else Done(outcome.value, outcome.parts)


def _turns(environment: Any, call: Call) -> Scores:
    begun = time.monotonic()
    found = [_follows(environment, Turn(**turn)) for turn in call.samples]
    return Scores([*found], begun, time.monotonic())


def _follows(environment: Any, turn: Turn) -> Follows | Failure:
    try:
        return checked_reply(awaited(environment.turn(turn)))
    except Exception as error:
        return _failure(error)


def checked_reply(result: object) -> Follows:
    """Check what an environment returned. Raises TypeError or ValueError if it is no answer."""
    if result is None:
        return Follows(over=True)
    found = Append(text=result) if isinstance(result, str) else result
    if not isinstance(found, Append):
        raise TypeError(
            f"returned {type(result).__name__} {result!r:.80}, expected text, Append or None"
        )
    if found.text and len(found.tokens):
        raise ValueError("returned an Append with text and tokens, expected one of them")
    tokens = tuple(operator.index(token) for token in found.tokens)
    memory = msgspec.json.decode(
        msgspec.json.encode(found.memory)
    )  # raises for values that JSON lacks
    return Follows(over=False, text=writable(found.text), tokens=tokens, memory=memory)


def _check(reward: Any, check: Check) -> Answer:
    """Collect the reward's complaints about answers, before anything is sampled."""
    if not hasattr(reward, "complaint"):
        return Checked([])
    try:
        return Checked([writable(reward.complaint(Sampled(**found))) for found in check.samples])
    except Exception as error:
        return _failure(error)


def _failure(error: BaseException) -> Failure:
    why = f"{type(error).__name__}: {error}"
    if isinstance(error, FileNotFoundError) and not os.path.isabs(str(error.filename or "/")):
        why += (
            " (plug-ins run in a directory of their own, with links to the files beside their "
            "source: name others by absolute paths)"
        )
    return Failure(writable(why), writable("".join(traceback.format_exception(error))))


def _frame(answer: Answer) -> bytes:
    frame = frame_message(answer)
    if len(frame) <= MAX_ANSWER_BYTES:
        return frame
    if isinstance(answer, Failure):
        return frame_message(_short(answer, 1))
    if isinstance(answer, Scores):
        count = len(answer.found)
        found = [_short(f, count) if isinstance(f, Failure) else f for f in answer.found]
        if (
            len(frame := frame_message(msgspec.structs.replace(answer, found=found)))
            <= MAX_ANSWER_BYTES
        ):
            return frame
    why = f"returned {len(frame)} bytes of numbers, at most {MAX_ANSWER_BYTES} are allowed"
    return frame_message(Failure(why, ""))


def _short(failure: Failure, count: int) -> Failure:
    """Shorten one of `count` failures that share a frame."""
    kept = MAX_ANSWER_BYTES // 16 // count  # a character takes up to six bytes in JSON
    return Failure(failure.why[:kept], failure.traceback[-kept:])


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    stream = channel.makefile("rb")
    setup = _next(stream)
    if not isinstance(setup, Setup):
        return
    die_with(setup.parent)
    confine(setup.limits)
    try:
        plugin = _build(setup)
    except BaseException as error:  # SystemExit of user code, too
        channel.sendall(_frame(_failure(error)))
        return
    link_files(folders_of(plugin), setup.directory)
    os.chdir(setup.directory)  # only now: relative import paths are resolved
    channel.sendall(_frame(Ready()))
    while isinstance(message := _next(stream), Call | Check):
        limit_call(setup.limits.cpu_s, time.process_time())
        if isinstance(message, Check):
            found = _check(plugin, message)
        elif setup.kind == "environment":
            found = _turns(plugin, message)
        else:
            found = _scores(plugin, message)
        channel.sendall(_frame(found))


if __name__ == "__main__":
    main()
