"""Logprobs that are computed while their trajectories still run (token-level streaming).

Turns hints into short calls of the cached forward, and a group that has come
into the old and reference logprobs of its members: what the hints left out, or
the cache could not hold, is computed then. A hint saves time and changes no
result. Source: token streaming, arXiv 2605.30859.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from learner.forward.micro_batches import trained_members
from learner.streaming.cached_forward import Floats, Scored, Streamer
from learner.streaming.fixed_logprobs import ByTrajectory
from pipeline.wire.messages import StreamedTokens, TrainGroup, TrainMember, ints

CALL_TOKENS = 1024
"""Of one call: larger ones take longer for each token on a CPU, and keep a group waiting."""


class Stream:
    """One model's logprobs, by trajectory."""

    def __init__(self, streamer: Streamer) -> None:
        self._streamer = streamer
        self._found: dict[int, list[Floats]] = {}
        self._prompts: set[int] = set()

    @property
    def pending(self) -> int:
        """Tokens that wait for a call."""
        return self._streamer.statistics()["pending"]

    def hint(self, hints: StreamedTokens) -> None:
        for chunk in hints.chunks:
            # After a hole (a cache that was cleared in between) the group's coming fills it.
            if chunk.offset == self._streamer.held(chunk.trajectory):
                self._begin(chunk.group, hints.prompts[chunk.group])
                self._streamer.extend(chunk.trajectory, chunk.group, ints(chunk.tokens).tolist())
        for trajectory in hints.gone:
            self._streamer.release(trajectory)
            self._found.pop(trajectory, None)

    def work(self) -> None:
        """One call, short trajectories first: they are the likeliest to be chosen."""
        self._keep(self._streamer.run(CALL_TOKENS, priority=self._streamer.held))

    def take(self, groups: Sequence[TrainGroup]) -> ByTrajectory:
        """Logprobs of sampled tokens of every member trained on; the groups leave the cache."""
        wanted: dict[int, TrainMember] = {}
        for group in groups:
            for member in trained_members(group):
                self._begin(group.group, group.prompt)
                known = self._streamer.held(member.trajectory)
                rest = ints(member.response)[known:].tolist()
                if rest or not known:
                    self._streamer.extend(member.trajectory, group.group, rest)
                wanted[member.trajectory] = member
        while self._streamer.waiting(wanted):
            call = self._streamer.run(CALL_TOKENS, priority=lambda name: float(name not in wanted))
            self._keep(call)
        missing = [name for name in wanted if name in self._streamer.dropped]
        for name in missing:
            self._found.pop(name, None)
        self._keep(self._streamer.recompute(missing, CALL_TOKENS))
        found = {
            name: torch.from_numpy(sampled_only(np.concatenate(self._found.pop(name)), member))
            for name, member in wanted.items()
        }
        for group in groups:
            self._streamer.release_group(group.group)
            self._prompts.discard(group.group)
        return found

    def clear(self) -> None:
        """The weights change: nothing that was computed is of use any more."""
        self._streamer.clear()
        self._found.clear()
        self._prompts.clear()

    def _begin(self, group: int, prompt: bytes) -> None:
        if group not in self._prompts:
            self._prompts.add(group)
            self._streamer.prompt(group, ints(prompt).tolist())

    def _keep(self, scored: Iterable[Scored]) -> None:
        for piece in scored:
            self._found.setdefault(piece.trajectory, []).append(piece.logprobs)


def sampled_only(logprobs: Floats, member: TrainMember) -> Floats:
    """Of a response's tokens those that were sampled, not appended by an environment."""
    kept = np.ones(len(logprobs), dtype=np.bool_)
    for first, count in member.appended:
        kept[first : first + count] = False
    return logprobs[kept]


class Ahead:
    """The streams of a rank: of its own weights, of the reference model, or none."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = streams

    @property
    def pending(self) -> int:
        return max((stream.pending for stream in self._streams), default=0)

    def hint(self, hints: StreamedTokens) -> None:
        for stream in self._streams:
            stream.hint(hints)

    def work(self) -> None:
        for stream in self._streams:
            if stream.pending:
                stream.work()
