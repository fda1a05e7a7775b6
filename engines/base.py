"""Defines what an engine must be able to do; a new one takes about an afternoon.

The worker (`engines.worker`) owns sockets, legs, flushing and versions; an
engine only samples. All methods run on the worker's event loop.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import msgspec

from pipeline.wire.fields import Drawing, PacedSteps


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """One request: continue `tokens`."""

    id: str  # an emulated pace does not hold those back that begin with `engines.pace.FREE`
    tokens: Sequence[int]  # prompt and the response tokens already held
    max_tokens: int  # new tokens at most, >= 1
    drawing: Drawing
    seed: int
    stop_tokens: tuple[int, ...] = ()
    """These end it too, beside the model's own; an engine that cannot may sample past them."""
    ignore_stop: bool = False  # sample past stop tokens: for measurements


class Delta(msgspec.Struct, frozen=True):
    """New tokens of one request, all sampled with one version of the weights."""

    tokens: Sequence[int]
    logprobs: Sequence[float]  # nats, of the distribution that was sampled from
    finish: str = ""  # '' | 'stop' | 'length' | 'abort'; the finish rides on the last token
    version: int | None = None  # None: the version that the worker loaded last
    score: float | None = None  # of the response so far, on a scale of the engine's own; None: none
    remaining: float | None = None  # tokens that it expects after these; None: it does not predict


def tokens_of_value(value: float, gamma: float) -> float:
    """What a length value head says, as tokens still to come (`Delta.remaining`).

    Each token costs 1 - gamma, so that l of them are worth -(1 - gamma^l). The inverse of a mean is
    below the mean length.

    Args:
        value: in (-1, 0].
        gamma: discount that the head was trained with, below 1: .997, or .999 for 32k tokens.

    Source: LenVM, arXiv 2604.27039.

    >>> round(tokens_of_value(-0.259516, gamma=0.997))
    100
    """
    return math.log1p(value) / math.log(gamma)


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a running engine that the stage needs."""

    slots: int  # sequences that may run at once
    vocabulary: int
    max_model_tokens: int
    latency: tuple[tuple[int, float], ...] = ()  # (running, seconds per token); (): to be measured
    about: dict[str, str] = {}


class TensorCheck(msgspec.Struct, frozen=True):
    """Published tensors that an engine holds; those that it cannot show are in neither."""

    equal: tuple[str, ...] = ()
    different: tuple[str, ...] = ()


class EngineError(Exception):
    """The engine cannot do what was asked; the worker reports it and exits."""


class Engine(Protocol):
    has_model: bool
    """False: there are no weights to prove; gaps are reported as 0."""

    async def start(self) -> EngineInfo:
        """Load the model and answer a first request before this returns."""
        ...

    def generate(self, sampling: Sampling) -> AsyncIterator[Delta]:
        """Stream new tokens; the last delta has a finish. Ends with 'abort' after `abort`."""
        ...

    async def abort(self, ids: Sequence[str]) -> None:
        """Stop these requests; unknown ids are ignored."""
        ...

    async def load_weights(self, directory: str, version: int) -> None:
        """Serve `directory`/model.safetensors from now on.

        Requests in flight continue and are prefilled again under the new weights;
        no cached key or value of the old ones is used again.
        """
        ...

    async def check_tensors(self, directory: str, checksums: Mapping[str, str]) -> TensorCheck:
        """Compare the tensors that are served now with those of `directory`/model.safetensors.

        Args:
            checksums: Hugging Face name -> xxh3_64 of the tensor in the file.
        """
        ...

    async def logprobs(self, tokens: Sequence[int], temperature: float) -> list[float]:
        """Logprob of tokens[i + 1] given tokens[: i + 1] under the weights served now.

        Returns len(tokens) - 1 numbers; NaN where the engine cannot tell (the
        probe compares the others, at least eight of them).
        """
        ...

    async def take_paced(self) -> PacedSteps:
        """Return how many steps an emulated pace has held back since the last call."""
        ...

    def failure(self) -> str:
        """Return why the engine can no longer sample; '' while it can. Called once a second."""
        ...

    async def close(self) -> None:
        """Stop, and leave no process or memory behind."""
        ...


READY = "ready ("
"""In the log of an engine once it has loaded its model: before that, it could not start."""


def log_line(line: str) -> None:
    """Print one line to stderr; a full disk loses the line, never the engine."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
