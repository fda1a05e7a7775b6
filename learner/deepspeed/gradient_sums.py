"""Sums the gradients of a step over its backward passes in float32.

Float32 parameters sum by themselves, in `p.grad`. A bfloat16 parameter would lose
whatever is smaller than 1/256 of its sum, and late groups with it: its gradients are
added to a float32 tensor after each pass, and rounded once, for the optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter


class GradientSums:
    """Sums of the passes since the last `clear_sums`, on this rank."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._parameters = parameters
        self._sums: dict[int, Tensor] = {}  # index of a parameter -> its sum, where not in p.grad

    def add_gradients(self) -> None:
        """Add the gradients of a pass; call it after each backward."""
        for at, p in enumerate(self._parameters):
            if p.grad is None or p.dtype == torch.float32:
                continue
            if at in self._sums:
                self._sums[at].add_(p.grad)
            else:
                self._sums[at] = p.grad.float()
            p.grad = None

    def all_sums(self) -> list[Tensor]:
        """Return the sums of all parameters that have one."""
        own = [p.grad for p in self._parameters if p.grad is not None]
        return [*own, *self._sums.values()]

    def sum_of(self, at: int) -> Tensor | None:
        """Return the sum of one parameter, by its index."""
        return self._sums.get(at, self._parameters[at].grad)

    def hand_over(self) -> None:
        """Put every sum into `p.grad`, for the optimizer."""
        for at, total in self._sums.items():
            self._parameters[at].grad = total.to(self._parameters[at].dtype)
        self._sums.clear()

    def clear_sums(self) -> None:
        """Forget all sums."""
        self._sums.clear()
        for p in self._parameters:
            p.grad = None
