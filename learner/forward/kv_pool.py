"""Holds rows of keys and values, one per token, for sequences that grow.

Row 0 is padding, never written and never handed out: padding must read finite
values, since a masked NaN is still NaN. Freed rows are not cleared: a row is
always written for its new owner before it is read. Knows neither sequences nor
versions; the owner keeps all rows of one version of the weights.

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
    """More rows are requested than are free."""


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
        """`rows`: most tokens held; memory is 2 x layers x heads x head_dim x rows values."""
        shape = (layers, rows + 1, heads, head_dim)
        self.keys_LRND = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LRND = torch.zeros(shape, dtype=dtype, device=device)
        self.size = rows
        self.free = rows
        """Number of free rows: they are the first of `_stack`."""
        self._stack = np.arange(rows, 0, -1, dtype=np.int64)

    def take_rows(self, count: int) -> Rows:
        """Take rows for `count` tokens. Raises PoolFull, and takes none, if fewer are free."""
        if count > self.free:
            raise PoolFull(f"{count} rows requested, {self.free} of {self.size} free")
        self.free -= count
        return self._stack[self.free : self.free + count].copy()

    def give_back_rows(self, rows: Rows) -> None:
        """Free rows that are not read any more."""
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
