"""Batches for losses, made by hand or at random, and what a loss does to one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from learner.losses import Loss, LossBatch


def batch_of(
    ratios: list[list[float]], advantages: list[float], **changes: torch.Tensor
) -> LossBatch:
    """A batch with these ratios of new over old probability; old and behaviour logprobs are 0."""
    logprobs_BT = torch.tensor(ratios).log().requires_grad_()
    old_BT = torch.zeros_like(logprobs_BT).detach()
    advantages_B = torch.tensor(advantages)
    fields: dict[str, Any] = {
        "old_logprobs_BT": old_BT,
        "behaviour_BT": old_BT,
        "mask_BT": torch.ones_like(old_BT),
        "weights_B": torch.ones(len(ratios)),
        "importance_BT": torch.ones_like(old_BT),
        "advantages_B": advantages_B,
        "advantages_BT": advantages_B.unsqueeze(1).expand_as(old_BT),
        "rewards_B": (advantages_B > 0).float(),
        "group_B": torch.zeros(len(ratios), dtype=torch.int64),
        **changes,
    }
    return LossBatch(logprobs_BT=logprobs_BT, lengths_B=fields["mask_BT"].sum(1), **fields)


def random_batch(members: Sequence[int] = (4, 3, 5), seed: int = 0, longest: int = 9) -> LossBatch:
    """Groups of so many members, of both rewards; lengths differ, some tokens are appended."""
    rng = torch.Generator().manual_seed(seed)

    def noise(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=rng)

    rows = sum(members)
    shape = (rows, longest)
    lengths = torch.randint(2, longest + 1, (rows,), generator=rng)
    mask_BT = (torch.arange(longest).expand(shape) < lengths.unsqueeze(1)).float()
    mask_BT[torch.rand(shape, generator=rng) < 0.1] = 0.0
    mask_BT[:, 0] = 1.0
    rewards_B = torch.tensor([float(at % 2) for count in members for at in range(count)])
    group_B = torch.tensor([group for group, count in enumerate(members) for _ in range(count)])
    advantages_B = rewards_B - 0.4
    advantages_B[1] = 0.0
    logprobs_BT = -noise(*shape).abs()
    old_BT = logprobs_BT + noise(*shape, scale=0.3)
    return LossBatch(
        logprobs_BT=logprobs_BT.clone().requires_grad_(),
        old_logprobs_BT=old_BT,
        behaviour_BT=old_BT + noise(*shape, scale=0.2),
        advantages_B=advantages_B,
        advantages_BT=advantages_B.unsqueeze(1).expand(shape).clone(),
        rewards_B=rewards_B,
        lengths_B=mask_BT.sum(1),
        group_B=group_B,
        mask_BT=mask_BT,
        weights_B=0.5 + torch.rand(rows, generator=rng),
        importance_BT=0.5 + torch.rand(shape, generator=rng),
        reference_BT=logprobs_BT + noise(*shape, scale=0.2),
        entropy_BT=noise(*shape).abs(),
        max_tokens=longest,
    )


def changed(batch: LossBatch, **values: Any) -> LossBatch:
    """The batch with other values; its logprobs are a leaf of their own."""
    values.setdefault("logprobs_BT", batch.logprobs_BT)
    values["logprobs_BT"] = values["logprobs_BT"].detach().clone().requires_grad_()
    return dataclasses.replace(batch, **values)


def rows_of(batch: LossBatch, rows_B: torch.Tensor) -> LossBatch:
    """These rows of a batch alone."""
    values = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
    chosen = {
        name: value[rows_B] for name, value in values.items() if isinstance(value, torch.Tensor)
    }
    return changed(batch, **chosen)


def outcome(loss: Loss, batch: LossBatch) -> tuple[float, torch.Tensor, dict[str, float]]:
    """Value, gradient of the logprobs, metrics."""
    batch = changed(batch)
    value, metrics = loss.loss(batch)
    if value.requires_grad:
        value.backward()
    gradient = batch.logprobs_BT.grad
    found = torch.zeros_like(batch.logprobs_BT) if gradient is None else gradient
    return value.item(), found, metrics
