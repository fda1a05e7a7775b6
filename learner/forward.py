"""Groups -> micro-batches -> logprobs of their response tokens.

Sequences are padded on the right: under causal attention no token sees the
padding, so no attention mask is needed and the fast kernels stay in use.
Logits are computed for positions that predict a response token only, in
float32, divided by the temperature that the engine sampled with.

Axes: B sequences, L tokens of the longest, T positions that predict a
response token of any sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.losses import LossBatch
from pipeline.messages import TrainGroup, TrainMember, floats, ints
from pipeline.packing import pack

Forward = Callable[..., Any]
"""A transformers causal LM, or the DeepSpeed engine around it."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Sequences that go through the model in one call."""

    tokens_BL: Tensor
    first: int
    """Position whose logits predict the earliest response token."""
    behaviour_BT: Tensor
    mask_BT: Tensor
    advantages_B: Tensor
    weights_B: Tensor


def trained_members(group: TrainGroup) -> list[TrainMember]:
    """Members that leave a trace in the loss: weight 0 counts nothing."""
    return [member for member in group.members if member.weight != 0 and member.response]


def counted_tokens(group: TrainGroup) -> float:
    """This group's part of the normaliser: member weight times response tokens."""
    return sum(member.weight * (len(member.response) // 4) for member in group.members)


def micro_batches(groups: Sequence[TrainGroup], cap: int, device: torch.device) -> list[MicroBatch]:
    """All trained members of the groups, length-sorted, at most `cap` padded tokens a batch."""
    found = [(ints(group.prompt), member) for group in groups for member in trained_members(group)]
    lengths = [len(prompt) + len(member.response) // 4 for prompt, member in found]
    return [_assemble([found[index] for index in chosen], device) for chosen in pack(lengths, cap)]


def _assemble(rows: Sequence[tuple[Any, TrainMember]], device: torch.device) -> MicroBatch:
    longest = max(len(prompt) + len(member.response) // 4 for prompt, member in rows)
    first = min(len(prompt) for prompt, _ in rows) - 1
    if first < 0:
        raise ValueError("an empty prompt: the first response token has nothing before it")
    tokens = np.zeros((len(rows), longest), dtype=np.int64)
    behaviour = np.zeros((len(rows), longest - 1 - first), dtype=np.float32)
    mask = np.zeros_like(behaviour)
    for row, (prompt, member) in enumerate(rows):
        response, logprobs = ints(member.response), floats(member.behaviour)
        if len(response) != len(logprobs):
            raise ValueError(
                f"trajectory {member.trajectory}: {len(response)} tokens, "
                f"{len(logprobs)} behaviour logprobs"
            )
        end = len(prompt) + len(response)
        tokens[row, : len(prompt)] = prompt
        tokens[row, len(prompt) : end] = response
        columns = slice(len(prompt) - 1 - first, end - 1 - first)
        behaviour[row, columns] = logprobs
        mask[row, columns] = 1.0
    return MicroBatch(
        tokens_BL=torch.from_numpy(tokens).to(device),
        first=first,
        behaviour_BT=torch.from_numpy(behaviour).to(device),
        mask_BT=torch.from_numpy(mask).to(device),
        advantages_B=torch.tensor([member.advantage for _, member in rows], device=device),
        weights_B=torch.tensor([member.weight for _, member in rows], device=device),
    )


def logprobs(model: Forward, tokens_BL: Tensor, first: int, temperature: float) -> Tensor:
    """Logprob of token i + 1 given tokens up to i, for i from `first` on: shape (B, T)."""
    keep_T = torch.arange(first, tokens_BL.shape[1] - 1, device=tokens_BL.device)
    logits_BTV = model(input_ids=tokens_BL, use_cache=False, logits_to_keep=keep_T).logits
    return token_logprobs(logits_BTV, tokens_BL[:, first + 1 :], temperature)


def token_logprobs(logits_BTV: Tensor, taken_BT: Tensor, temperature: float) -> Tensor:
    """Logprobs of the tokens taken, at a temperature, computed in float32."""
    scaled_BTV = logits_BTV.float()
    if temperature != 1.0:
        scaled_BTV = scaled_BTV / temperature
    taken = scaled_BTV.gather(-1, taken_BT.unsqueeze(-1)).squeeze(-1)
    return taken - scaled_BTV.logsumexp(-1)


def loss_batch(
    model: Forward, batch: MicroBatch, temperature: float, importance_cap: float
) -> LossBatch:
    """The forward pass of one micro-batch, as a loss wants it."""
    logprobs_BT = logprobs(model, batch.tokens_BL, batch.first, temperature)
    old_BT = logprobs_BT.detach()  # one optimizer step per batch: the ratio is 1
    importance_BT = torch.ones_like(old_BT)
    if importance_cap > 0:
        importance_BT = truncated_importance(old_BT, batch.behaviour_BT, importance_cap)
        # outside the mask the behaviour is a zero that means nothing
        importance_BT = torch.where(batch.mask_BT > 0, importance_BT, 1.0)
    return LossBatch(
        logprobs_BT=logprobs_BT,
        old_logprobs_BT=old_BT,
        behaviour_BT=batch.behaviour_BT,
        advantages_B=batch.advantages_B,
        mask_BT=batch.mask_BT,
        weights_B=batch.weights_B,
        importance_BT=importance_BT,
    )


def truncated_importance(old_BT: Tensor, behaviour_BT: Tensor, cap: float) -> Tensor:
    """min(pi_old / pi_behaviour, cap) per token."""
    return (old_BT - behaviour_BT).exp().clamp(max=cap)
