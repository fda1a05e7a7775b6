"""`python -m pipeline.reward_worker DESCRIPTOR`: a reward or rollout, called again and again.

A process of its own, for user code. Told over a socket what to build and what it may use
(`reward_wire`); whatever the code raises is an answer. Works in an empty directory; what
it imports is found as it was by the stage.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

import msgspec

from pipeline import plugins
from pipeline.confinement import confine, die_with, limit_call
from pipeline.reward_wire import (
    LENGTH_BYTES,
    MAX_ANSWER_BYTES,
    Answer,
    Ask,
    Call,
    Done,
    Failure,
    Follows,
    Question,
    Ready,
    Setup,
    framed,
    order,
)
from pipeline.verbs import Append, Score
from pipeline.views import Sampled, Turn


def _next(stream: BinaryIO) -> Setup | Question | None:
    """None: the stage is gone."""
    length = stream.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    return order(stream.read(int.from_bytes(length, "little")))


def _build(setup: Setup) -> Any:
    cls = plugins.find(setup.seam, setup.plugin.name)
    return cls(msgspec.convert(setup.plugin.options, plugins.options_type(cls)))


def _answer(plugin: Any, question: Question, runner: asyncio.Runner) -> Answer:
    """What the plug-in says; one loop for all its calls, so that connections can last."""
    begun = time.monotonic()  # this machine's clock, as the stage's
    try:
        score = isinstance(question, Call)
        result = (
            plugin.score(Sampled(**question.sample))
            if isinstance(question, Call)
            else plugin.turn(Turn(**question.turn))
        )
        if inspect.isawaitable(result):
            result = runner.run(_awaited(result))
        if score:
            value, parts = checked(result)
            return Done(value, parts, begun, time.monotonic())
        found = follows(result)
        if found is None:
            return Follows(True, "", (), None, begun, time.monotonic())
        text = _writable(found.text)
        return Follows(False, text, found.tokens, found.memory, begun, time.monotonic())
    except Exception as error:
        return _failure(error)


async def _awaited(result: Any) -> Any:
    return await result


def _failure(error: BaseException) -> Failure:
    why = f"{type(error).__name__}: {error}"
    return Failure(_writable(why), _writable("".join(traceback.format_exception(error))))


def _writable(text: str) -> str:
    """Without halves of surrogate pairs, which JSON cannot hold."""
    return text.encode(errors="backslashreplace").decode()


def _frame(answer: Answer) -> bytes:
    frame = framed(answer)
    if len(frame) <= MAX_ANSWER_BYTES:
        return frame
    if isinstance(answer, Failure):
        kept = MAX_ANSWER_BYTES // 16  # a character is up to six bytes of JSON
        return framed(Failure(answer.why[:kept], answer.traceback[-kept:]))
    return framed(Failure(f"returned {len(frame)} bytes of numbers", ""))


def checked(result: object) -> tuple[float, dict[str, float]]:
    """A reward's answer as a finite number with parts. Raises ValueError or TypeError.

    A dict is verl's: "score" is the reward, its other finite numbers are parts.
    """
    parts: Mapping[Any, Any] = {}
    if isinstance(result, Score):
        result, parts = result.value, result.parts
    elif isinstance(result, dict):
        given = cast(dict[Any, Any], result)
        if "score" not in given:
            raise ValueError(f"returned a dict without 'score': {', '.join(map(str, given))}")
        result, parts = given["score"], {k: v for k, v in given.items() if k != "score"}
    value = _number(result)
    if value is None:
        raise TypeError(f"returned {type(result).__name__} {result!r:.80}, expected a number")
    if not math.isfinite(value):
        raise ValueError(f"returned {value}, expected a finite number")
    numbers = {_writable(str(key)): _number(part) for key, part in parts.items()}
    return value, {k: n for k, n in numbers.items() if n is not None and math.isfinite(n)}


def follows(result: object) -> Append | None:
    """A rollout's answer; None: the response is complete. Raises TypeError or ValueError."""
    if result is None:
        return None
    found = Append(text=result) if isinstance(result, str) else result
    if not isinstance(found, Append):
        raise TypeError(
            f"returned {type(result).__name__} {result!r:.80}, expected text, Append or None"
        )
    if found.text and found.tokens:
        raise ValueError("returned an Append with text and tokens, expected one of them")
    return msgspec.convert(msgspec.to_builtins(found), Append)  # no numpy numbers within


def _number(value: object) -> float | None:
    """Numbers, booleans and what offers __float__ (numpy, one-element tensors); text does not."""
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        return None
    return float(cast(float, value))


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
    os.chdir(setup.directory)  # now: what is imported by relative paths has been found
    channel.sendall(_frame(Ready()))
    with asyncio.Runner() as runner:
        while isinstance(message := _next(stream), Call | Ask):
            limit_call(setup.limits.cpu_s, time.process_time())
            channel.sendall(_frame(_answer(plugin, message, runner)))


if __name__ == "__main__":
    main()
