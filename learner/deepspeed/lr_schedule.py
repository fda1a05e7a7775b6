"""Computes learning rates by the number of applied steps, and which parameters are decayed.

Pure: a resumed run continues with the rate that it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import LearnerConfig

if TYPE_CHECKING:
    from torch.nn import Parameter


def scheduled_lr(section: LearnerConfig, updates: int, steps: int) -> float:
    """Return the learning rate of the step after `updates` others.

    Linear up to `lr` over `warmup_steps`, then by the schedule: `min_lr` would be reached
    one step after the last, so that every step moves.

    Args:
        steps: those of the whole run (`step.count`).

    >>> section = LearnerConfig(lr=1.0, schedule="linear", warmup_steps=2, min_lr=0.2)
    >>> [round(scheduled_lr(section, updates, 5), 3) for updates in range(6)]
    [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    warmed_up = min(1.0, (updates + 1) / max(1, section.warmup_steps))
    peak = max(0, section.warmup_steps - 1)
    passed = min(1.0, max(0, updates - peak) / max(1, steps - peak))
    match section.schedule:
        case "linear":
            share = 1 - passed
        case "cosine":
            share = (1 + math.cos(math.pi * passed)) / 2
        case _:
            return section.lr * warmed_up
    return section.lr * warmed_up * (section.min_lr + (1 - section.min_lr) * share)


def decay_groups(
    named: Sequence[tuple[str, Parameter]], section: LearnerConfig
) -> list[dict[str, Any]]:
    """Split the parameters for an optimizer: those that are decayed, and the others.

    One group if all are treated alike, so that the optimizer's state keeps its layout.
    """

    def spared(name: str) -> bool:
        return any(part in name for part in section.no_decay)

    kept = [p for name, p in named if spared(name)] if section.weight_decay else []
    decayed = [p for name, p in named if not (kept and spared(name))]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": section.weight_decay}]
    if kept:
        groups.append({"params": kept, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
