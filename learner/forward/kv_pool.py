"""Rows of keys and values, one a token, for sequences that are extended bit by bit.

Row 0 is read as padding, never written and never handed out: what padding
reads must be finite, for a masked NaN is still NaN. Rows that came back are
not cleared: nobody reads a row before it has been written for its new owner.
Knows neither sequences nor versions; its rows are of one version of the
weights, which is the owner's business.

Axes: R rows with row 0, P packed tokens of a call, N heads of keys and values,
D head dimension.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.int64]


class PoolFull(Exception):
    """More rows are wanted than are free."""


class KvPool:
    """Keys and values of every layer, and which rows are free."""

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`rows`: tokens held at most; memory is 2 x layers x heads x head_dim x rows values."""
        shape = (layers, rows + 1, heads, head_dim)
        self.keys_LRND = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LRND = torch.zeros(shape, dtype=dtype, device=device)
        self.size = rows
        self.free = rows
        """Rows that nobody holds: the first so many of `_stack`."""
        self._stack = np.arange(rows, 0, -1, dtype=np.int64)

    def take_rows(self, count: int) -> Rows:
        """Rows for `count` tokens. Raises PoolFull, and takes none, if fewer are free."""
        if count > self.free:
            raise PoolFull(f"{count} rows wanted, {self.free} of {self.size} free")
        self.free -= count
        return self._stack[self.free : self.free + count].copy()

    def give_back_rows(self, rows: Rows) -> None:
        """Rows that nobody reads from now on."""
        self._stack[self.free : self.free + len(rows)] = rows
        self.free += len(rows)

    def write_rows(
        self, layer: int, rows_P: Tensor, keys_PND: Tensor, values_PND: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store a call's keys and values; returns all rows of the layer, shape (R, N, D) each."""
        keys_RND, values_RND = self.keys_LRND[layer], self.values_LRND[layer]
        keys_RND.index_copy_(0, rows_P, keys_PND)
        values_RND.index_copy_(0, rows_P, values_PND)
        return keys_RND, values_RND
