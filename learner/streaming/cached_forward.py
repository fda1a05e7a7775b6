"""Computes logprobs of running trajectories from their chunks, just after sampling.

Turns (trajectory, new tokens) into cached rows of keys and values, and logprobs
under the present weights; many short chunks become one packed call. A chunk is
fed one token late: its inputs are the last token known before and the new ones
except the last, so every input predicts a known token, and neither hidden
states nor logits wait between calls. A group's prompt is cached once, without
its last token (each member's first input), as long as a member needs it.
Invariants: all rows are of one version of the weights (`clear_cache` begins another),
and a trajectory that does not fit is dropped as a whole, never in part.
Knows no socket, no clock and no version number.

Axes: P packed tokens of a call, N those of trajectories (the last ones of the call).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.forward.kv_pool import KvPool, Rows
from learner.forward.lm_head import packed_logprobs
from learner.forward.micro_batches import Forward, pack_whole
from learner.forward.packed_attention import bare_model, packed_logits
from learner.forward.packed_call import PackedCall, Segment, build_call
from learner.forward.packing import pack

Floats = NDArray[np.float32]


class StreamError(ValueError):
    """A call contradicts what is known of the group or trajectory."""


@dataclass(frozen=True, slots=True)
class StreamedLogprobs:
    """Logprobs of consecutive response tokens of one trajectory."""

    trajectory: int
    offset: int
    """Position of the first token within the response."""
    logprobs: Floats
    """Nats, at the sampling temperature."""
    entropies: Floats | None
    """Nats, of the distribution that each token was drawn from; None unless requested."""


@dataclass(slots=True)
class _Sequence:
    """Known tokens of a sequence, and the cache rows of those that were fed."""

    tokens: list[int]
    rows: Rows = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(slots=True)
class _Group:
    prefix: _Sequence  # the prompt without its last token
    last: int  # the prompt's last token
    members: set[int] = field(default_factory=set[int])
    streaming: int = 0  # members that may still read the prefix's rows


@dataclass(slots=True)
class _Trajectory:
    group: int
    sequence: _Sequence  # the prompt's last token and the response
    dropped: bool = False

    @property
    def pending(self) -> int:
        """Inputs to feed: all but the last token, whose successor is not known."""
        return 0 if self.dropped else len(self.sequence.tokens) - 1 - len(self.sequence.rows)


class CachedForward:
    """The cached forward pass over running trajectories."""

    def __init__(
        self, model: Forward, temperature: float, kv_tokens: int, *, entropy: bool = False
    ) -> None:
        """
        Args:
            model: a transformers causal LM, or the DeepSpeed engine around it.
            temperature: sampling temperature of the engines.
            kv_tokens: most tokens in the cache, over all trajectories and prompts.
            entropy: compute entropies too.
        """
        bare: Any = bare_model(model)
        weight: Tensor = next(bare.parameters())
        heads = bare.config.num_attention_heads
        self._model = bare
        self._temperature = temperature
        self._entropy = entropy
        self._device = weight.device
        self._groups: dict[int, _Group] = {}
        self._trajectories: dict[int, _Trajectory] = {}
        self._pool = KvPool(
            layers=bare.config.num_hidden_layers,
            heads=getattr(bare.config, "num_key_value_heads", None) or heads,
            head_dim=getattr(bare.config, "head_dim", None) or bare.config.hidden_size // heads,
            rows=kv_tokens,
            dtype=weight.dtype,
            device=weight.device,
        )

    # --- what is known ----------------------------------------------------------------------

    def begin_group(self, group: int, tokens: Sequence[int]) -> None:
        """Begin a group; computes nothing yet. Raises StreamError if it is empty or known."""
        if group in self._groups:
            raise StreamError(f"group {group} has its prompt already")
        if not len(tokens):
            raise StreamError(f"group {group}: an empty prompt")
        *first, last = map(int, tokens)
        self._groups[group] = _Group(prefix=_Sequence(first), last=last)

    def extend_trajectory(self, trajectory: int, group: int, tokens: Sequence[int]) -> None:
        """Queue the next response tokens of a trajectory, new or known.

        Raises: StreamError if the group has no prompt, or the trajectory is of another.
        """
        if group not in self._groups:
            raise StreamError(f"trajectory {trajectory}: group {group} has no prompt")
        known = self._trajectories.get(trajectory)
        if known is None:
            owner = self._groups[group]
            known = _Trajectory(group=group, sequence=_Sequence([owner.last]))
            self._trajectories[trajectory] = known
            owner.members.add(trajectory)
            owner.streaming += 1
        elif known.group != group:
            raise StreamError(f"trajectory {trajectory} is of group {known.group}, not {group}")
        known.sequence.tokens.extend(map(int, tokens))

    def tokens_held(self, trajectory: int) -> int:
        """Count the response tokens received (0 if unknown): the next chunk's offset."""
        known = self._trajectories.get(trajectory)
        return 0 if known is None else len(known.sequence.tokens) - 1

    def has_pending(self, trajectories: Iterable[int]) -> bool:
        """Return True if one of these trajectories has tokens left to compute."""
        return any(self._trajectories[name].pending for name in trajectories)

    @property
    def dropped(self) -> frozenset[int]:
        """Trajectories that did not fit: only `recompute_logprobs` gives their logprobs."""
        return frozenset(name for name, known in self._trajectories.items() if known.dropped)

    def statistics(self) -> dict[str, int]:
        """Count tokens cached, tokens waiting for a call, trajectories known and dropped."""
        return {
            "cached": self._pool.size - self._pool.free,
            "pending": sum(known.pending for known in self._trajectories.values()),
            "trajectories": len(self._trajectories),
            "dropped": len(self.dropped),
        }

    # --- forgetting -------------------------------------------------------------------------

    def release_trajectory(self, trajectory: int) -> None:
        """Forget a trajectory that ended or was aborted; an unknown one is ignored."""
        if trajectory in self._trajectories:
            self._drop(trajectory)
            known = self._trajectories.pop(trajectory)
            self._groups[known.group].members.remove(trajectory)

    def release_group(self, group: int) -> None:
        """Forget a group with all its members; an unknown one is ignored."""
        if group in self._groups:
            for trajectory in sorted(self._groups[group].members):
                self.release_trajectory(trajectory)
            del self._groups[group]

    def clear_cache(self) -> None:
        """Forget everything: the weights are about to change, and every row depends on them."""
        for group in list(self._groups):
            self.release_group(group)

    def _drop(self, trajectory: int) -> None:
        """Stop streaming a trajectory; the last member also frees the prompt's rows."""
        known = self._trajectories[trajectory]
        if known.dropped:
            return
        known.dropped = True
        self._free(known.sequence)
        group = self._groups[known.group]
        group.streaming -= 1
        if not group.streaming:
            self._free(group.prefix)

    def _free(self, sequence: _Sequence) -> None:
        self._pool.give_back_rows(sequence.rows)
        sequence.rows = sequence.rows[:0]

    # --- computing --------------------------------------------------------------------------

    @torch.no_grad()
    def run_call(
        self, most_tokens: int, priority: Callable[[int], float] | None = None
    ) -> list[StreamedLogprobs]:
        """Run one packed call over waiting tokens; returns the logprobs that it computed.

        A trajectory that finds too few free rows is dropped (see `dropped`). A call that
        fails leaves rows half written: then all trajectories are dropped.

        Args:
            most_tokens: most input tokens of the call, prompts included.
            priority: trajectory -> order in which it is fed, low ones first. None: in
                order of arrival.
        """
        waiting = [name for name, known in self._trajectories.items() if known.pending]
        if priority is not None:
            waiting.sort(key=priority)
        prompts: list[tuple[_Group, int]] = []
        chunks: list[tuple[int, int]] = []
        room = most_tokens
        for name in waiting:
            if room <= 0:
                break
            known = self._trajectories[name]
            group = self._groups[known.group]
            missing = len(group.prefix.tokens) - len(group.prefix.rows)
            shared = min(missing, room)
            own = min(known.pending, room - shared)
            if shared + own > self._pool.free:
                self._drop(name)
                continue
            if shared:
                self._grow(group.prefix, shared)
                prompts.append((group, shared))
            if own:
                self._grow(known.sequence, own)
                chunks.append((name, own))
            room -= shared + own
        try:
            return self._feed(prompts, chunks) if prompts or chunks else []
        except BaseException:
            for name in self._trajectories:
                self._drop(name)
            raise

    def _grow(self, sequence: _Sequence, count: int) -> None:
        sequence.rows = np.concatenate([sequence.rows, self._pool.take_rows(count)])

    def _feed(
        self, prompts: Sequence[tuple[_Group, int]], chunks: Sequence[tuple[int, int]]
    ) -> list[StreamedLogprobs]:
        """Run the model over the last rows of these sequences, which are still empty."""
        fed: list[int] = []
        taken: list[int] = []
        writes: list[Rows] = []
        segments: list[Segment] = []

        def feed(sequence: _Sequence, count: int, before: Rows) -> None:
            own = np.arange(len(fed), len(fed) + count)
            segments.append(Segment(tokens=own, rows=np.concatenate([before, sequence.rows])))
            writes.append(sequence.rows[-count:])
            begin = len(sequence.rows) - count
            fed.extend(sequence.tokens[begin : begin + count])

        for group, count in prompts:
            feed(group.prefix, count, group.prefix.rows[:0])
        for name, count in chunks:
            known = self._trajectories[name]
            sequence = known.sequence
            feed(sequence, count, self._groups[known.group].prefix.rows)
            begin = len(sequence.rows) - count
            taken += sequence.tokens[begin + 1 : begin + count + 1]
        call = build_call(segments, self._device, pool=self._pool, writes=np.concatenate(writes))
        if not chunks:  # only prompts
            packed_logits(self._model, self._tensor(fed), call, 1)
            return []
        offsets = [
            (name, len(self._trajectories[name].sequence.rows) - count, count)
            for name, count in chunks
        ]
        return self._scored(self._tensor(fed), call, self._tensor(taken), offsets)

    @torch.no_grad()
    def recompute_logprobs(
        self, trajectories: Iterable[int], most_tokens: int
    ) -> list[StreamedLogprobs]:
        """Compute the logprobs of whole responses so far, by packed calls without the cache.

        Args:
            trajectories: dropped or not, each with at least one token.
            most_tokens: tokens per call; a longer response has a call of its own.

        Raises: KeyError for an unknown trajectory, ValueError for one without a token.
        """
        members: dict[int, list[int]] = {}
        for name in trajectories:
            members.setdefault(self._trajectories[name].group, []).append(name)
        groups = [(self._groups[group], found) for group, found in members.items()]
        sizes = [
            (len(group.prefix.tokens), [self.tokens_held(name) for name in found])
            for group, found in groups
        ]
        scored: list[StreamedLogprobs] = []
        for parts in pack(sizes, most_tokens):
            names = [[groups[at][1][index] for index in chosen] for at, chosen in parts]
            packed = pack_whole(
                [
                    (
                        [*groups[part.group][0].prefix.tokens, groups[part.group][0].last],
                        [self._trajectories[name].sequence.tokens[1:] for name in found],
                    )
                    for part, found in zip(parts, names, strict=True)
                ],
                self._device,
            )
            offsets = [(name, 0, self.tokens_held(name)) for found in names for name in found]
            scored += self._scored(packed.tokens_P, packed.call, packed.taken_N, offsets)
        return scored

    def _scored(
        self,
        tokens_P: Tensor,
        call: PackedCall,
        taken_N: Tensor,
        chunks: Sequence[tuple[int, int, int]],
    ) -> list[StreamedLogprobs]:
        """Run a call, and split its logprobs by (trajectory, offset, count)."""
        found_N, entropies_N = packed_logprobs(
            self._model, tokens_P, call, taken_N, self._temperature, entropy=self._entropy
        )
        logprobs_N = found_N.cpu().numpy()
        entropy_N = None if entropies_N is None else entropies_N.cpu().numpy()
        scored: list[StreamedLogprobs] = []
        begin = 0
        for name, offset, count in chunks:
            cut = slice(begin, begin + count)
            entropy = None if entropy_N is None else entropy_N[cut]
            scored.append(StreamedLogprobs(name, offset, logprobs_N[cut], entropy))
            begin += count
        return scored

    def _tensor(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(tokens, dtype=torch.long, device=self._device)
