"""Computes logprobs while their trajectories still run (token streaming).

Turns streamed tokens into short calls of the cached forward, and an arrived group into the
old and reference logprobs of its members: tokens that were not streamed ahead, or that the
cache could not hold, are computed then. Streaming saves time and changes no result.
Source: token streaming, arXiv 2605.30859.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import torch

from learner.forward.memory import ran_out_of_memory
from learner.forward.micro_batches import trained_members
from learner.pace import PassPace
from learner.streaming.cached_forward import CachedForward, Floats, StreamedLogprobs
from learner.streaming.fixed_logprobs import ByTrajectory
from pipeline.wire.messages import StreamedChunk, StreamedTokens, TrainGroup, TrainMember, ints

log = logging.getLogger(__name__)

CALL_TOKENS = 1024
"""Tokens per call: on a CPU larger calls cost more per token, and delay arriving groups."""

_LATER = 1e12
"""More tokens than any trajectory holds."""


class ModelStream:
    """One model's logprobs, by trajectory."""

    def __init__(self, forward: CachedForward, pace: PassPace | None = None) -> None:
        self._forward, self._pace = forward, pace or PassPace(None)
        self._found: dict[int, list[Floats]] = {}
        self._keys: dict[int, dict[bytes, int]] = {}
        """Group -> prompt -> the number that the cache knows it by: a group may have several."""
        self._begun = 0

    @property
    def pending_tokens(self) -> int:
        """Number of tokens that wait for a call."""
        return self._forward.statistics()["pending"]

    def add_streamed(self, tokens: StreamedTokens) -> None:
        """Queue the next tokens of these trajectories; forget those that are gone."""
        for chunk in tokens.chunks:
            self.add_chunk(tokens.prompt_of(chunk), chunk)
        for trajectory in tokens.gone:
            self._forward.release_trajectory(trajectory)
            self._found.pop(trajectory, None)

    def add_chunk(self, prompt: bytes, chunk: StreamedChunk) -> None:
        """Queue the tokens of a chunk that are new; after a gap none are."""
        known = self._forward.tokens_held(chunk.trajectory)
        fresh = ints(chunk.tokens)[max(0, known - chunk.offset) :]
        # After a gap (the cache was cleared in between) the arriving group fills it.
        if chunk.offset <= known and len(fresh):
            key = self._begin(chunk.group, prompt)
            self._forward.extend_trajectory(chunk.trajectory, key, fresh.tolist())

    def run_call(self, first: Collection[int] = ()) -> list[StreamedLogprobs]:
        """Run one call and return what it computed: of the trajectories in `first`, then short
        ones, which are the likeliest to be selected.

        If memory runs out, all that was computed ahead is dropped, and nothing is returned.
        """

        def priority(name: int) -> float:
            return self._forward.tokens_held(name) + (0.0 if name in first else _LATER)

        try:
            return self._run(priority)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            log.warning("out of memory ahead of the groups: they are computed when they arrive")
        self.clear_stream()
        return []

    def has_pending(self, trajectories: Iterable[int]) -> bool:
        """Return True if one of these trajectories has tokens left that this stream computes."""
        held = self._forward.tokens_held
        return self._forward.has_pending(name for name in trajectories if held(name))

    def lacking(self, trajectories: Iterable[int]) -> list[int]:
        """Return those that this stream will not compute: unknown, or too large for the cache."""
        gone, held = self._forward.dropped, self._forward.tokens_held
        return [name for name in trajectories if name in gone or not held(name)]

    def take_logprobs(self, groups: Sequence[TrainGroup]) -> ByTrajectory:
        """Return logprobs of all trained members' sampled tokens; the groups leave the cache."""
        wanted: dict[int, TrainMember] = {}
        for group in groups:
            for member in trained_members(group):
                key = self._begin(group.group, group.prompt_of(member))
                known = self._forward.tokens_held(member.trajectory)
                rest = ints(member.response)[known:].tolist()
                if rest or not known:
                    self._forward.extend_trajectory(member.trajectory, key, rest)
                wanted[member.trajectory] = member
        while self._forward.has_pending(wanted):
            self._run(lambda name: float(name not in wanted))
        missing = [name for name in wanted if name in self._forward.dropped]
        for name in missing:
            self._found.pop(name, None)
        begun_s = time.monotonic()
        again = self._keep(self._forward.recompute_logprobs(missing, CALL_TOKENS))
        self._pace.wait_forward(begun_s, sum(len(piece.logprobs) for piece in again))
        found = {
            name: torch.from_numpy(sampled_only(np.concatenate(self._found.pop(name)), member))
            for name, member in wanted.items()
        }
        self.release_groups(groups)
        return found

    def release_groups(self, groups: Sequence[TrainGroup]) -> None:
        """Forget these groups and their members."""
        for group in groups:
            for member in group.members:
                self._found.pop(member.trajectory, None)
            for key in self._keys.pop(group.group, {}).values():
                self._forward.release_group(key)

    def clear_stream(self) -> None:
        """Forget everything: the weights are about to change."""
        self._forward.clear_cache()
        self._found.clear()
        self._keys.clear()

    def _begin(self, group: int, prompt: bytes) -> int:
        """Returns what the cache knows this prompt of the group by."""
        keys = self._keys.setdefault(group, {})
        if prompt not in keys:
            self._begun += 1
            keys[prompt] = self._begun
            self._forward.begin_group(self._begun, ints(prompt).tolist())
        return keys[prompt]

    def _run(self, priority: Callable[[int], float]) -> list[StreamedLogprobs]:
        begun_s = time.monotonic()
        scored = self._forward.run_call(CALL_TOKENS, priority)
        self._pace.wait_forward(begun_s, sum(len(piece.logprobs) for piece in scored))
        return self._keep(scored)

    def _keep(self, scored: list[StreamedLogprobs]) -> list[StreamedLogprobs]:
        for piece in scored:
            self._found.setdefault(piece.trajectory, []).append(piece.logprobs)
        return scored


def sampled_only(logprobs: Floats, member: TrainMember) -> Floats:
    """Keep the logprobs of sampled tokens, without those appended by the environment."""
    kept = np.ones(len(logprobs), dtype=np.bool_)
    for first, count in member.appended:
        kept[first : first + count] = False
    return logprobs[kept]


class LogprobStream:
    """The streams of a rank: own weights, reference model, both or none."""

    def __init__(self, own: ModelStream | None, reference: ModelStream | None) -> None:
        self.own = own
        self._streams = [stream for stream in (own, reference) if stream is not None]

    @property
    def pending_tokens(self) -> int:
        return max((stream.pending_tokens for stream in self._streams), default=0)

    def add_streamed(self, tokens: StreamedTokens) -> None:
        for stream in self._streams:
            stream.add_streamed(tokens)

    def run_calls(self) -> list[StreamedLogprobs]:
        """Run a call of each stream; returns what was computed under the own weights."""
        found: list[StreamedLogprobs] = []
        for stream in self._streams:
            if stream.pending_tokens:
                scored = stream.run_call()
                found += scored if stream is self.own else []
        return found
