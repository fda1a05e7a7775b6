"""What an engine must be able to do; about an afternoon's work for a new one.

The worker (`engines.worker`) owns sockets, legs, flushing and versions; an
engine only samples. All methods run on the worker's event loop.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """One request: continue `tokens`."""

    id: str
    tokens: Sequence[int]  # prompt and the response tokens already held
    max_tokens: int  # new tokens at most, >= 1
    temperature: float  # 0: the likeliest token, with its logprob at temperature 1
    seed: int
    stop_tokens: tuple[int, ...] = ()
    """These end it too, beside the model's own; an engine that cannot may go on past them."""
    ignore_stop: bool = False  # go on past stop tokens: for measurements


class Delta(msgspec.Struct, frozen=True):
    """New tokens of one request, all sampled with one version of the weights."""

    tokens: Sequence[int]
    logprobs: Sequence[float]  # nats, of the distribution that was sampled from
    finish: str = ""  # '' | 'stop' | 'length' | 'abort'; the finish rides on the last token
    version: int | None = None  # None: the version that the worker loaded last


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the stage needs to know of an engine once it runs."""

    slots: int  # sequences that may run at once
    vocabulary: int
    max_model_tokens: int
    latency: tuple[tuple[int, float], ...] = ()  # (running, seconds per token); () to be measured
    about: dict[str, str] = {}


class EngineError(Exception):
    """The engine cannot do what was asked; the worker reports it and exits."""


class Engine(Protocol):
    has_model: bool
    """False: there are no weights that a probe could prove; gaps are reported as 0."""

    async def start(self) -> EngineInfo:
        """Load the model; a first request answered before this returns."""
        ...

    def generate(self, sampling: Sampling) -> AsyncIterator[Delta]:
        """Stream new tokens; the last delta has a finish. Ends with 'abort' after `abort`."""
        ...

    async def abort(self, ids: Sequence[str]) -> None:
        """Stop these requests; unknown ids are ignored."""
        ...

    async def load_weights(self, directory: str, version: int) -> None:
        """Serve `directory`/model.safetensors from now on.

        Requests in flight go on and are prefilled again under the new weights;
        no cached key or value of the old ones is used any more.
        """
        ...

    async def logprobs(self, tokens: Sequence[int], temperature: float) -> list[float]:
        """Logprob of tokens[i + 1] given tokens[: i + 1] under the weights served now.

        Returns len(tokens) - 1 numbers; NaN where the engine cannot tell (the
        probe compares the others, at least eight of them).
        """
        ...

    def failure(self) -> str:
        """Why the engine can sample no more; '' while it can. Asked once a second."""
        ...

    async def close(self) -> None:
        """Stop, and leave no process or memory behind."""
        ...


def log_line(line: str) -> None:
    """One line on stderr, at once."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
