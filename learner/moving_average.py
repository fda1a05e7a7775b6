"""Follows the trained weights with an exponential moving average: a frozen model that lags behind.

    W_t = 1 + decay W_(t-1),   p_t = p_(t-1) + (theta_t - p_(t-1)) / W_t

The weights before the first optimizer step count as the first (W_0 = 1), so that the average is of
weights that there were and of nothing else. One more copy, in float32 whatever is trained: a small
share of a small change is lost in bfloat16. Every rank holds the same one, and they need no word
to each other.
Source: PPO-EWMA, arXiv 2110.00641 (code openai/ppo-ewma); decay 8/9 is ours, the code has none.
"""

from __future__ import annotations

from typing import Any

import torch


class MovingAverage:
    """The average, as a model.

    Args:
        model: of its own, as the weights are before the first step; in float32, frozen.
        trained: the module whose weights move, whole on this rank.
    """

    def __init__(self, model: Any, trained: Any, decay: float) -> None:
        self.model = model
        self._trained = trained
        self._decay = decay
        self._weight = 1.0

    @torch.no_grad()
    def follow(self) -> None:
        """An optimizer step was applied."""
        self._weight = 1.0 + self._decay * self._weight
        pairs = zip(self.model.parameters(), self._trained.parameters(), strict=True)
        for mine, theirs in pairs:
            mine.lerp_(theirs.detach().to(mine), 1.0 / self._weight)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: tensors and plain values."""
        parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        return {"weight": self._weight, "parameters": parameters}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self._weight = state["weight"]
        for name, mine in self.model.named_parameters():
            mine.copy_(state["parameters"][name])
