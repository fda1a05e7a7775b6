"""Waits for a moment of the monotonic clock."""

from __future__ import annotations

import time


def sleep_until(due_s: float) -> float:
    """Sleep until then; returns by how many seconds it was over already, 0.0 if it was not."""
    left = due_s - time.monotonic()
    if left > 0:
        time.sleep(left)
    return max(0.0, -left)
