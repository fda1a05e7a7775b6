"""Turns groups into micro-batches, and micro-batches into logprobs of response tokens.

A micro-batch is one packed call: its tokens stand one after another without
padding, and the prefix that members with the same prompt share is computed once. That
is the prompt without its last token: the last one predicts the first response token,
so each member has its own copy of it. The last response token predicts nothing and
is not fed. Logits are computed for members' tokens only, in float32, divided by the
sampling temperature of the engines.

Axes: B members, T tokens of the longest response, P packed tokens, N response
tokens (the last of the packed ones).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.forward.lm_head import packed_logprobs
from learner.forward.packed_call import PackedCall, Rows, Segment, build_call
from learner.forward.packing import pack
from learner.losses import LossBatch
from pipeline.wire.messages import Ints, TrainGroup, TrainMember, floats, ints

TokenIds = Sequence[int] | Ints
Forward = Callable[..., Any]
"""A transformers causal LM, or the DeepSpeed engine around it."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Whole responses in one call."""

    tokens_P: Tensor
    call: PackedCall
    taken_N: Tensor
    """The response tokens, member after member, which the last N packed tokens predict."""

    @property
    def tokens(self) -> int:
        """Number of tokens that the model computes."""
        return len(self.tokens_P)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Members that go through the model in one call."""

    packed: Packed
    sampled_N: Tensor | None
    """Indices of sampled response tokens, if the environment appended others."""
    places_N: Tensor
    """Index of each sampled response token in a flat (B, T)."""
    behaviour_BT: Tensor
    mask_BT: Tensor
    advantages_B: Tensor
    advantages_BT: Tensor
    rewards_B: Tensor
    weights_B: Tensor
    group_B: Tensor
    trajectories: tuple[int, ...]
    """Ids, in the order of the rows."""
    old_BT: Tensor | None = None
    """Old logprobs that came with the members, NaN where the rank's own hold; None: all do."""
    foreign_B: Tensor | None = None
    """1.0 for members that were not sampled for their group; None: there is none. The behaviour
    logprobs of one that has none are NaN."""


def trained_members(group: TrainGroup) -> list[TrainMember]:
    """Return the members that count in the loss: those with a weight and a response."""
    return [member for member in group.members if member.weight != 0 and member.response]


def counted_tokens(group: TrainGroup) -> float:
    """Compute this group's part of the normaliser: member weight times sampled tokens."""
    return sum(member.weight * member.sampled_tokens for member in group.members)


def micro_batches(
    groups: Sequence[TrainGroup], cap: int, device: torch.device, *, whole_groups: bool = False
) -> list[MicroBatch]:
    """Pack all trained members of the groups, at most `cap` tokens per micro-batch.

    Args:
        whole_groups: keep a group in one micro-batch, also one over the cap.
    """
    parts = [
        (owner, ints(prompt), found)
        for owner, group in enumerate(groups)
        for prompt, found in by_prompt(group).items()
    ]
    sizes = [
        (max(0, len(prompt) - 1), [len(member.response) // 4 for member in found])
        for _, prompt, found in parts
    ]
    owners = [owner for owner, _, _ in parts]
    return [
        _assemble(
            [(parts[p][1], [parts[p][2][m] for m in chosen]) for p, chosen in packed],
            [groups[owners[p]].group for p, chosen in packed for _ in chosen],
            device,
        )
        for packed in pack(sizes, cap, whole_groups=whole_groups, owners=owners)
    ]


def by_prompt(group: TrainGroup) -> dict[bytes, list[TrainMember]]:
    """Return the trained members by the prompt (int32) that they were sampled after: the group's,
    or one of their own."""
    found: dict[bytes, list[TrainMember]] = {}
    for member in trained_members(group):
        found.setdefault(group.prompt_of(member), []).append(member)
    return found


def _assemble(
    parts: Sequence[tuple[Any, Sequence[TrainMember]]],
    groups: Sequence[int],
    device: torch.device,
) -> MicroBatch:
    """`groups`: id of the group of each member."""
    members = [member for _, found in parts for member in found]
    responses = [ints(member.response) for member in members]
    rows, longest = len(members), max(len(response) for response in responses)
    behaviour = np.zeros((rows, longest), dtype=np.float32)
    mask, old = np.zeros_like(behaviour), np.full_like(behaviour, np.nan)
    advantages = np.zeros_like(behaviour)
    held = np.zeros(mask.shape, dtype=np.bool_)
    for row, (member, response) in enumerate(zip(members, responses, strict=True)):
        _check_lengths(member, len(response))
        behaviour[row, : len(response)] = floats(member.behaviour) if member.behaviour else np.nan
        advantages[row, : len(response)] = (
            floats(member.token_advantages) if member.token_advantages else member.advantage
        )
        mask[row, : len(response)] = 1.0
        held[row, : len(response)] = True
        for first, count in member.appended:
            mask[row, first : first + count] = 0.0
        if member.old:
            old[row, : len(response)] = floats(member.old)
    foreign = [float(member.foreign) for member in members]
    appended = any(member.appended for member in members)
    packed = pack_whole(
        [(prompt, [ints(member.response) for member in found]) for prompt, found in parts], device
    )
    return MicroBatch(
        packed=packed,
        sampled_N=torch.from_numpy(mask[held].nonzero()[0]).to(device) if appended else None,
        places_N=torch.from_numpy(mask.reshape(-1).nonzero()[0]).to(device),
        behaviour_BT=torch.from_numpy(behaviour).to(device),
        mask_BT=torch.from_numpy(mask).to(device),
        advantages_B=torch.tensor([member.advantage for member in members], device=device),
        advantages_BT=torch.from_numpy(advantages).to(device),
        rewards_B=torch.tensor([float(member.reward) for member in members], device=device),
        weights_B=torch.tensor([member.weight for member in members], device=device),
        group_B=torch.tensor(groups, device=device),
        trajectories=tuple(member.trajectory for member in members),
        old_BT=torch.from_numpy(old).to(device) if any(m.old for m in members) else None,
        foreign_B=torch.tensor(foreign, device=device) if any(foreign) else None,
    )


def _check_lengths(member: TrainMember, tokens: int) -> None:
    """Raise ValueError if the member has numbers for more or fewer tokens than its response has."""
    given = {
        "behaviour logprobs": tokens if _unknown(member) else len(member.behaviour) // 4,
        "old logprobs": len(member.old) // 4 if member.old else tokens,
        "advantages": len(member.token_advantages) // 4 if member.token_advantages else tokens,
    }
    for what, count in given.items():
        if count != tokens:
            raise ValueError(f"trajectory {member.trajectory}: {tokens} tokens, {count} {what}")


def _unknown(member: TrainMember) -> bool:
    """Return True if nobody knows what its tokens were sampled with."""
    return member.foreign and not member.behaviour


def pack_whole(
    parts: Sequence[tuple[TokenIds, Sequence[TokenIds]]], device: torch.device
) -> Packed:
    """Pack (prompt, responses) pairs into one call: shared prefixes first, then the members.

    Raises: ValueError for an empty prompt: the first response token has nothing before it.
    """
    if not all(len(prompt) for prompt, _ in parts):
        raise ValueError("an empty prompt: the first response token has nothing before it")
    fed: list[Any] = [prompt[:-1] for prompt, _ in parts]
    taken: list[Any] = []
    ends = np.cumsum([0, *(len(prefix) for prefix in fed)])
    prefixes: list[Rows] = [np.arange(*pair) for pair in itertools.pairwise(ends)]
    segments = [Segment(tokens=rows, rows=rows) for rows in prefixes if len(rows)]
    end = int(ends[-1])
    for (prompt, responses), prefix in zip(parts, prefixes, strict=True):
        for response in responses:
            own = np.arange(end, end + len(response))
            segments.append(Segment(tokens=own, rows=np.concatenate([prefix, own])))
            fed += [prompt[-1:], response[:-1]]
            taken.append(response)
            end += len(response)
    tokens, targets = (np.concatenate(values).astype(np.int64) for values in (fed, taken))
    return Packed(
        tokens_P=torch.from_numpy(tokens).to(device),
        call=build_call(segments, device),
        taken_N=torch.from_numpy(targets).to(device),
    )


def response_logprobs(model: Forward, packed: Packed, temperature: float) -> Tensor:
    """Compute the logprob of each response token given all before it, nats: shape (N,)."""
    return packed_logprobs(model, packed.tokens_P, packed.call, packed.taken_N, temperature)[0]


def loss_batch(
    model: Forward,
    batch: MicroBatch,
    temperature: float,
    *,
    entropy: bool = False,
    entropy_gradient: bool = False,
    max_tokens: int = 0,
) -> LossBatch:
    """Run the forward pass of one micro-batch for a loss; 0 where no token was sampled.

    The old logprobs are the new ones, detached: with one update per batch the ratio is 1.

    Args:
        entropy: compute entropies too.
        entropy_gradient: they have a gradient.
        max_tokens: `sampling.max_tokens`, for losses that scale lengths by it.
    """
    packed = batch.packed
    logprobs_N, entropy_N = packed_logprobs(
        model, packed.tokens_P, packed.call, packed.taken_N, temperature,
        entropy=entropy, entropy_gradient=entropy_gradient,
    )  # fmt: skip

    def placed(values_N: Tensor) -> Tensor:
        if batch.sampled_N is not None:
            values_N = values_N[batch.sampled_N]
        flat = values_N.new_zeros(batch.mask_BT.numel()).index_copy(0, batch.places_N, values_N)
        return flat.view_as(batch.mask_BT)

    logprobs_BT = placed(logprobs_N)
    return LossBatch(
        entropy_BT=None if entropy_N is None else placed(entropy_N),
        logprobs_BT=logprobs_BT,
        old_logprobs_BT=logprobs_BT.detach(),
        behaviour_BT=batch.behaviour_BT,
        advantages_B=batch.advantages_B,
        advantages_BT=batch.advantages_BT,
        rewards_B=batch.rewards_B,
        lengths_B=batch.mask_BT.sum(1),
        group_B=batch.group_B,
        max_tokens=max_tokens,
        mask_BT=batch.mask_BT,
        weights_B=batch.weights_B,
        importance_BT=torch.ones_like(batch.mask_BT),
    )
