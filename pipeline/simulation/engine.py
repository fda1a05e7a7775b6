"""A rollout engine in virtual time: requests in, token frames out.

All running sequences advance together, one token a decode step, so one number (tokens
decoded by each since the start) says where every one of them is: an end is found by a
heap, and a change of load costs the logarithm of what runs. Pure: time is an argument.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

import msgspec
import numpy as np

from pipeline.coordinator.events import Generate, Tokens
from pipeline.hardware.costs import EngineCost
from pipeline.simulation.workload import Response
from pipeline.wire.messages import ChunkHead

_ROUNDING = 1e-6  # tokens: progress is a sum of many small numbers
_NEVER = math.inf
_ZEROS = bytes(1 << 20)


class Leg(msgspec.Struct, kw_only=True):
    """One running request."""

    trajectory: int
    leg: int
    begun: float  # the engine's progress when it started
    context: int  # tokens in the cache when it started
    offset: int  # response tokens that were there before
    total: int  # tokens that it will sample
    finish: str  # stop | length
    confidence: float
    logprobs: bytes  # of the response's first tokens; `confidence` for those after
    sent: int = 0


class ModelledEngine:
    """One epoch of one engine.

    Args:
        chunk_tokens: new tokens of every sequence after which a frame goes out;
            0: only with an end.
        remaining: say with each chunk how many tokens of its leg are to come.
    """

    def __init__(
        self,
        name: str,
        epoch: int,
        slots: int,
        cost: EngineCost,
        chunk_tokens: int = 0,
        *,
        remaining: bool = False,
    ) -> None:
        self.name, self.epoch, self.slots, self.cost = name, epoch, slots, cost
        self.version = -1
        self.slow = 1.0  # a decode step takes so many times as long
        self.stamp = 0  # of its next moment; a wait for an older one is out of date
        self.legs: dict[tuple[int, int], Leg] = {}
        self._base = cost.table(slots)
        self._chunk = chunk_tokens
        self._says_remaining = remaining
        self._ends: list[tuple[float, int, int]] = []  # (progress, trajectory, leg)
        self._progress = 0.0  # tokens that every running sequence has decoded since the start
        self._flushed = 0.0  # progress at the last frame of running ones
        self._cached = 0.0  # tokens in the cache of those that run
        self._at = self._resumes = 0.0  # progress is known up to here; nothing before that
        self._sequence = self._sampled = 0

    # --- time ---------------------------------------------------------------------------

    def due(self) -> float:
        """Returns when the next sequence ends or the next frame is sent."""
        if not self.legs:
            return _NEVER
        while self._ends[0][1:] not in self.legs:
            heapq.heappop(self._ends)
        target = self._ends[0][0]
        if self._chunk:
            target = min(target, self._flushed + self._chunk)
        tokens = max(0.0, target - self._progress)
        linear, square = self._rates()
        return max(self._at, self._resumes) + tokens * (linear + square * tokens)

    def _rates(self) -> tuple[float, float]:
        """n tokens of everybody take n x linear + n^2 x square: the cache grows with them."""
        running, kv_s = len(self.legs), self.cost.kv_s
        linear = (self._base[running] + kv_s * self._cached) * self.slow
        return linear, 0.5 * kv_s * running * self.slow

    def advance(self, now: float) -> None:
        """Let everything that runs decode up to now."""
        if now <= self._at:
            return
        seconds = now - max(self._at, self._resumes)
        self._at = now
        if seconds <= 0 or not self.legs:
            return
        linear, square = self._rates()
        tokens = 2 * seconds / (linear + math.sqrt(linear * linear + 4 * square * seconds))
        self._progress += tokens
        self._cached += tokens * len(self.legs)

    def _hold_up(self, now: float, seconds: float) -> None:
        self._resumes = max(self._resumes, now) + seconds

    # --- requests -----------------------------------------------------------------------

    def place(self, now: float, command: Generate, prompt_tokens: int, response: Response) -> None:
        """Start a leg. Raises ValueError if there is no slot, no weights, or nothing to sample."""
        key = (command.trajectory, command.leg)
        if key in self.legs or len(self.legs) >= self.slots or self.version < 0:
            raise ValueError(f"engine {self.name}: {key} of {len(self.legs)} on {self.slots} slots")
        if command.max_tokens < 1:
            raise ValueError(f"engine {self.name}: {key} may sample no token")
        self.advance(now)
        if not self.legs:
            self._flushed = self._progress
        held = len(command.prefix) // 4
        left = max(1, response.tokens - held)
        total = min(left, command.max_tokens)
        self.legs[key] = Leg(
            trajectory=command.trajectory,
            leg=command.leg,
            begun=self._progress,
            context=prompt_tokens + held,
            offset=held,
            total=total,
            finish="stop" if left <= command.max_tokens else "length",
            confidence=response.confidence,
            logprobs=response.logprobs,
        )
        heapq.heappush(self._ends, (self._progress + total, *key))
        self._cached += prompt_tokens + held
        self._hold_up(now, self.cost.prefill_s * (prompt_tokens + held))

    def end(self, now: float, keys: Iterable[tuple[int, int]], stop: frozenset[int]) -> Tokens:
        """Abort legs: their last tokens go out with the word that they have ended."""
        self.advance(now)
        ended = [self.legs[key] for key in keys if key in self.legs]
        return self._frame([(leg, self._count(leg), "abort") for leg in ended], stop)

    def forget(self, now: float) -> None:
        """One of its requests is gone, without a word."""
        self.advance(now)
        if self.legs:
            leg = self.legs.pop(next(iter(self.legs)))
            self._cached -= leg.context + self._progress - leg.begun

    def load(self, now: float, version: int, stop: frozenset[int]) -> Tokens:
        """Take a new version: what runs was sampled by the old one up to here, and waits."""
        self.advance(now)
        frame = self._frame([(leg, self._count(leg), "") for leg in self.legs.values()], stop)
        self.version = version
        self._hold_up(now, self.cost.load_s)
        return frame

    def flush(self, now: float, stop: frozenset[int]) -> Tokens:
        """The frame that is due: ends, and new tokens of what still runs."""
        self.advance(now)
        reached = self._progress + _ROUNDING
        out: list[tuple[Leg, int, str]] = []
        while self._ends and self._ends[0][0] <= reached:
            _, trajectory, number = heapq.heappop(self._ends)
            leg = self.legs.get((trajectory, number))
            if leg is not None:
                out.append((leg, leg.total, leg.finish))
        if self._chunk and self._progress >= self._flushed + self._chunk - _ROUNDING:
            self._flushed = self._progress
            ended = {leg.trajectory for leg, _, _ in out}
            out += [
                (leg, self._count(leg), "")
                for leg in self.legs.values()
                if leg.trajectory not in ended
            ]
        return self._frame(out, stop)

    def _count(self, leg: Leg) -> int:
        return min(leg.total, int(self._progress - leg.begun + _ROUNDING))

    def _frame(self, parts: list[tuple[Leg, int, str]], stop: frozenset[int]) -> Tokens:
        chunks: list[ChunkHead] = []
        tokens: list[bytes] = []
        logprobs: list[bytes] = []
        for leg, count, finish in parts:
            new = count - leg.sent
            if new < 1 and not finish:
                continue
            chunks.append(
                ChunkHead(
                    leg.trajectory,
                    leg.leg,
                    leg.offset + leg.sent,
                    new,
                    self.version,
                    finish,
                    remaining=float(leg.total - count) if self._says_remaining else None,
                )
            )
            if new:
                last = min(stop).to_bytes(4, "little") if finish == "stop" else _ZEROS[:4]
                tokens += (_ZEROS[: 4 * new - 4], last)
                logprobs.append(_logprobs(leg, leg.offset + leg.sent, new))
                self._sampled += new
            leg.sent = count
            if finish:
                del self.legs[leg.trajectory, leg.leg]
                self._cached -= leg.context + self._progress - leg.begun
        self._sequence += 1
        return Tokens(
            engine=self.name,
            epoch=self.epoch,
            sequence=self._sequence - 1,
            sampled=self._sampled,
            chunks=tuple(chunks),
            tokens=b"".join(tokens),
            logprobs=b"".join(logprobs),
        )


def _logprobs(leg: Leg, first: int, count: int) -> bytes:
    """float32 of so many tokens, from the `first` of the response on."""
    known = leg.logprobs[4 * first : 4 * (first + count)]
    return known + np.float32(leg.confidence).tobytes() * (count - len(known) // 4)
