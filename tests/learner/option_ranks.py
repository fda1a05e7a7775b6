"""Learner ranks under the options of the learner's section, as `tests.learner.ranks` runs them.

`python -m tests.learner.option_ranks MODEL OUT`: every scenario into OUT/rankR.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tests.learner.ranks import resumed, streamed

BF16: dict[str, Any] = {"dtype": "bfloat16"}
CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
DECAYED: dict[str, Any] = {
    "weight_decay": 5.0,
    "schedule": "cosine",
    "min_lr": 0.1,
    "eps": 1e-4,
}


def main() -> None:
    import torch

    from learner import zero as deep
    from learner.zero import join_ranks, leave_ranks

    deep.PERSISTENT_ELEMENTS = 100  # as in tests.learner.ranks
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    join_ranks()
    found: dict[str, Any] = {}
    for zero in (1, 2, 3):
        found[f"bf16-{zero}"] = streamed(model, zero, rank, world, **BF16)
        found[f"bf16-resumed-{zero}"] = resumed(model, zero, rank, world, out, **BF16)
    for zero in (0, 3):
        found[f"checkpointed-{zero}"] = streamed(model, zero, rank, world, **CHECKPOINTED)
    for zero in (0, 2, 3):
        found[f"decayed-{zero}"] = streamed(model, zero, rank, world, **DECAYED)
        found[f"decayed-resumed-{zero}"] = resumed(model, zero, rank, world, out, **DECAYED)
    torch.save(found, out / f"rank{rank}.pt")
    leave_ranks()


if __name__ == "__main__":
    main()
