"""Builds the indices and masks of a packed call's attention from segments of sequences.

The tokens of a call stand one after another, without padding; only attention
needs to know which belong together. Its keys and values come from a table of rows: the
call's own tokens, or a pool that outlives the call. A segment names the rows of its
sequence in order of position, so many segments can share a prompt's rows.
Knows no model.

Axes: P packed tokens of a call; in one bucket B segments, C most queries of
a segment, K most keys of a segment; padding reads a row whose values are finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.forward.kv_pool import KvPool, Rows

BUCKET_PRICE = {"cpu": 4096, "cuda": 1 << 21}
"""Fixed cost of one more bucket, by device, in query-key pairs.

Measured on one CPU core, 4 heads of 32: about 0.2 ms of forward and backward,
where a pair takes 45 ns. Larger models lose little by it. On a GPU a bucket
costs dozens of kernel launches in every layer, a pair almost nothing: on an H200
a 0.5 B model took .55 s for a step of 10,000 tokens with the price of a CPU,
.26 s with this one (`launch.bench.gpu.learner`).
"""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one sequence: its last ones."""

    tokens: Rows
    """Their positions in the packed call, at least one."""
    rows: Rows
    """Rows of all tokens of the sequence from position 0 on, these included."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Segments of similar size, padded to one shape."""

    segments: int
    tokens_BC: Tensor
    """Flat: index of the packed token of each query."""
    rows_BK: Tensor
    """Flat: row of each key and value."""
    positions_BC: Tensor
    """Position of each query in its sequence; key k of a segment has position k."""
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(
        default_factory=dict[tuple[int | None, torch.dtype], Tensor]
    )

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return 0 where a query sees a key, -inf elsewhere: shape (B, 1, C, K).

        Args:
            window: keys that a query sees, its own included; None: all before it.
        """
        found = self.masks.get((window, dtype))
        if found is None:
            keys = len(self.rows_BK) // self.segments
            ahead_BCK = (
                torch.arange(keys, device=self.rows_BK.device) - self.positions_BC[..., None]
            )
            hidden_BCK = ahead_BCK > 0
            if window is not None:
                hidden_BCK |= ahead_BCK <= -window
            found = torch.zeros(hidden_BCK.shape, dtype=dtype, device=hidden_BCK.device)
            found = found.masked_fill_(hidden_BCK, float("-inf")).unsqueeze(1)
            self.masks[window, dtype] = found
        return found


@dataclass(frozen=True, slots=True)
class PackedCall:
    """One packed call, for the attention of every layer."""

    positions_1P: Tensor
    buckets: tuple[Bucket, ...]
    outputs_P: Tensor
    """Index of each packed token's output in the concatenated outputs of the buckets."""
    pool: KvPool | None = None
    """The table of rows; None: the call's own tokens."""
    writes_P: Tensor | None = None
    """Row of the pool that each packed token is written to."""
    windows: dict[int, int | None] = field(default_factory=dict[int, int | None])
    """Layers that have run this call -> their sliding window; None: no window."""


def build_call(
    segments: Sequence[Segment],
    device: torch.device,
    *,
    pool: KvPool | None = None,
    writes: Rows | None = None,
) -> PackedCall:
    """Build the indices of a call; every packed token is in exactly one segment."""
    total = sum(len(segment.tokens) for segment in segments)
    positions = np.zeros(total, dtype=np.int64)
    outputs = np.zeros(total, dtype=np.int64)
    buckets: list[Bucket] = []
    base = 0
    price = BUCKET_PRICE.get(device.type, BUCKET_PRICE["cuda"])
    for chosen in in_buckets([(len(s.tokens), len(s.rows)) for s in segments], price):
        group = [segments[index] for index in chosen]
        queries = max(len(segment.tokens) for segment in group)
        keys = max(len(segment.rows) for segment in group)
        tokens = np.zeros((len(group), queries), dtype=np.int64)
        rows = np.zeros((len(group), keys), dtype=np.int64)
        first = np.zeros((len(group), 1), dtype=np.int64)
        for place, segment in enumerate(group):
            count, end = len(segment.tokens), len(segment.rows)
            tokens[place, :count] = segment.tokens
            rows[place, :end] = segment.rows
            first[place] = end - count
            positions[segment.tokens] = np.arange(end - count, end)
            outputs[segment.tokens] = base + place * queries + np.arange(count)
        base += tokens.size
        # Padding keys lie after every position, so the same comparison hides them. A padding
        # query sees some keys; its output is not used. It must see at least one, whatever
        # the window: a softmax over nothing is NaN.
        place_BC = np.minimum(first + np.arange(queries), keys - 1)
        buckets.append(
            Bucket(
                segments=len(group),
                tokens_BC=_index(tokens, device),
                rows_BK=_index(rows, device),
                positions_BC=torch.from_numpy(place_BC).to(device),
            )
        )
    return PackedCall(
        positions_1P=_index(positions, device).unsqueeze(0),
        buckets=tuple(buckets),
        outputs_P=_index(outputs, device),
        pool=pool,
        writes_P=None if writes is None else _index(writes, device),
    )


def in_buckets(
    sizes: Sequence[tuple[int, int]], price: int = BUCKET_PRICE["cpu"]
) -> list[list[int]]:
    """Group indices of segments into runs of similar (queries, keys), the largest first.

    A run ends when its padding costs more pairs than `price`: so all runs
    together cost at most about twice the cheapest grouping.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i][1], -sizes[i][0], i))
    runs: list[list[int]] = []
    queries = keys = wasted = 0
    for index in order:
        own, seen = sizes[index]
        if runs:
            widest = max(queries, own)
            wasted += widest * keys - own * seen
            wasted += (widest - queries) * keys * len(runs[-1])
            queries = widest
        if not runs or wasted > price:
            runs.append([])
            queries, keys, wasted = own, seen, 0
        runs[-1].append(index)
    return runs


def _index(values: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values.reshape(-1)).to(device)
