"""Reads the outputs of vLLM's core in one loop, and hands each request its tokens as deltas.

Takes the place of the output handler of `AsyncLLM`, which makes a text, a `RequestOutput` and an
object for each logprob of what the core sends as arrays. The core sends one step of all requests at
a time, with the version of the weights that sampled it. `PARTS` names all that is used of vLLM
beside `AsyncLLM`'s own methods. Importing this module does not import vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from itertools import count
from operator import attrgetter
from typing import Any

from engines.base import Delta, EngineError

PARTS = (
    "output_handler",
    "input_processor.process_inputs",
    "engine_core.add_request_async",
    "engine_core.abort_requests_async",
    "engine_core.get_output_async",
)
_INTERVAL = 8  # tokens of a delta at most: a stop string is looked for in each


class _Stream:
    """Deltas of one request on their way to its reader.

    Args:
        interval: tokens that are handed on together; the first token is handed on at once.
        column: of the logprobs; 0 is the sampled token.
    """

    def __init__(self, name: str, interval: int, column: int) -> None:
        self.name = name  # the caller's
        self._interval, self._column = interval, column
        self._ready: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._version: int | None = None
        self._begun = False

    def add(self, output: Any, version: int | None) -> bool:
        """Add an `EngineCoreOutput`; returns True if it was the request's last."""
        if tokens := output.new_token_ids:
            if self._tokens and version != self._version:
                self.hand_on("")
            self._version = version
            self._tokens += tokens
            self._logprobs += output.new_logprobs.logprobs[:, self._column].tolist()
        if output.finish_reason is not None:
            self.hand_on(str(output.finish_reason))
            return True
        if len(self._tokens) >= self._interval or (self._tokens and not self._begun):
            self.hand_on("")
        return False

    def hand_on(self, finish: str) -> None:
        """Make a delta of the tokens that have gathered; there may be none with a finish."""
        self._ready.put_nowait(Delta(self._tokens, self._logprobs, finish, self._version))
        self._tokens, self._logprobs = [], []
        self._begun = True

    def fail(self, error: Exception) -> None:
        self._ready.put_nowait(error)

    async def next_delta(self) -> Delta:
        """Return the next delta. Raises what `fail` was called with."""
        found = await self._ready.get()
        if isinstance(found, Exception):
            raise found
        return found


class CoreOutputs:
    """The requests under way in the core of an `AsyncLLM`, whose outputs are read here from now on.

    Args:
        llm: has served no request. Its own methods for requests may not be used any more.
        chunk_tokens: a delta has no more tokens.

    Raises: EngineError if this version of vLLM lacks one of `PARTS`.
    """

    def __init__(self, llm: Any, chunk_tokens: int) -> None:
        for part in PARTS:
            try:
                attrgetter(part)(llm)
            except AttributeError as error:
                raise EngineError(f"this version of vLLM has no AsyncLLM.{part}") from error
        self._core, self._inputs = llm.engine_core, llm.input_processor
        self._interval = min(_INTERVAL, chunk_tokens)
        self._streams: dict[str, _Stream] = {}  # by the core's id
        self._ids: dict[str, str] = {}  # the caller's -> the core's
        self._numbers = count()
        if llm.output_handler is not None:  # it waits for the first output
            llm.output_handler.cancel()
        # `AsyncLLM.errored` and `shutdown` look at this task.
        llm.output_handler = self._task = asyncio.create_task(self._read())

    async def generate(
        self, name: str, tokens: Sequence[int], params: Any, column: int = 0
    ) -> AsyncGenerator[Delta, None]:
        """Stream a request's deltas, as `Engine.generate` does.

        Args:
            params: vLLM's `SamplingParams`, with logprobs.
            column: 1: logprobs of the token in `params.logprob_token_ids`, not of the sampled one.
        """
        # Not the caller's name: outputs of an aborted request of that name may still come.
        number = f"{name}-{next(self._numbers)}"
        request = self._inputs.process_inputs(
            number, {"type": "token", "prompt_token_ids": list(tokens)}, params, ("generate",)
        )
        if self._task.done():
            raise _dead()
        stream = self._streams[number] = _Stream(name, self._interval, column)
        self._ids[name] = number
        finish = ""
        try:
            with as_engine_error():
                await self._core.add_request_async(request)
            while not finish:
                delta = await stream.next_delta()
                finish = delta.finish
                yield delta
        finally:
            if self._forget(number):  # the reader went away
                await self._core.abort_requests_async([number])

    async def abort(self, names: Iterable[str]) -> None:
        """End these requests with the finish 'abort'; unknown ones are ignored."""
        numbers: list[str] = []
        for name in names:
            if (number := self._ids.get(name)) and (stream := self._forget(number)):
                stream.hand_on("abort")
                numbers.append(number)
        await self._core.abort_requests_async(numbers)

    def _forget(self, number: str) -> _Stream | None:
        """Remove a request that is under way; None: it has ended."""
        stream = self._streams.pop(number, None)
        if stream is not None and self._ids.get(stream.name) == number:
            del self._ids[stream.name]
        return stream

    async def _read(self) -> None:
        """Hand out what the core sends, until it dies."""
        try:
            with as_engine_error():
                while True:
                    self._distribute(await self._core.get_output_async())
        except Exception as error:  # those who wait would wait for ever
            failed = error if isinstance(error, EngineError) else EngineError(repr(error))
            for stream in self._streams.values():
                stream.fail(failed)

    def _distribute(self, step: Any) -> None:
        version = _version_of(step.weight_version)
        for output in step.outputs:
            stream = self._streams.get(output.request_id)
            # None: it was aborted, and the core did not know yet.
            if stream is not None and stream.add(output, version):
                self._forget(output.request_id)


@contextlib.contextmanager
def as_engine_error() -> Generator[None, None, None]:
    """Raise EngineError for a dead core: it is the engine that failed, not the request."""
    try:
        yield
    except Exception as error:
        from vllm.v1.engine.exceptions import EngineDeadError

        if isinstance(error, EngineDeadError):
            raise _dead() from error
        raise


def _dead() -> EngineError:
    return EngineError("vLLM's core process has died; see its own log")


def _version_of(label: str | None) -> int | None:
    """Return the version in vLLM's label of the weights; None: no version was loaded yet.

    >>> _version_of("12"), _version_of("default")
    (12, None)
    """
    if label is None:
        raise EngineError("vLLM does not report the version of the weights")
    return int(label) if label.isdigit() else None
