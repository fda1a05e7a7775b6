"""Lengths and a token cap -> micro-batches: one pure function for coordinator and ranks.

Sequences are sorted by length and cut into runs, so that a micro-batch pads
little; the cuts minimise padded tokens plus a fixed price per micro-batch,
exactly. Knows no tensor and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

MICRO_BATCH_PRICE = 128
"""Padded tokens that one more micro-batch is worth: its fixed cost in kernel launches.

Measured on one CPU core with a model of 0.6 M parameters: about 9 ms of forward
and backward, at 14 thousand tokens a second. Larger models lose little by it.
"""


def pack(lengths: Sequence[int], cap: int, *, price: int = MICRO_BATCH_PRICE) -> list[list[int]]:
    """Indices of `lengths`, cut into micro-batches of at most `cap` padded tokens.

    A micro-batch costs (longest x members) tokens. A sequence longer than
    `cap` stands alone. Every index comes exactly once; longest last.

    Args:
        lengths: shape (B,), tokens of each sequence, >= 1.
        cap: tokens of one micro-batch, padding included, >= 1.
        price: tokens that one more micro-batch costs.

    Raises: ValueError if a length or the cap is below 1.

    >>> pack([3, 900, 4, 4], cap=1000)
    [[0, 2, 3], [1]]
    """
    if cap < 1 or min(lengths, default=1) < 1:
        raise ValueError(f"cap {cap} and lengths {list(lengths)!r} must be at least 1")
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    # cost[end]: the cheapest way to cut the `end` shortest; start[end]: its last cut.
    cost = [0.0] + [float("inf")] * len(order)
    start = [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        for begin in range(end - 1, -1, -1):
            tokens = longest * (end - begin)
            if tokens > cap and end - begin > 1:
                break
            if cost[begin] + tokens + price < cost[end]:
                cost[end], start[end] = cost[begin] + tokens + price, begin
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[start[end] : end])
        end = start[end]
    batches.reverse()
    return batches
