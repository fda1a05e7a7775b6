"""Learner ranks under the options of the learner's section, as `tests.learner.ranks` runs them.

`python -m tests.learner.option_ranks MODEL OUT`: every scenario into OUT/rankR.pt.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.config.schema import LoraConfig
from tests.learner.ranks import STEPS, Rank, resumed, shares, streamed

BF16: dict[str, Any] = {"dtype": "bfloat16"}
CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
DECAYED: dict[str, Any] = {
    "weight_decay": 5.0,
    "schedule": "cosine",
    "min_lr": 0.1,
    "eps": 1e-4,
}
LORA: dict[str, Any] = {"lora": LoraConfig(rank=3, alpha=6.0), "lr": 1e-2}
THEIRS = {
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "contiguous_gradients": False},
    "communication_data_type": "fp32",
    "bf16": {"enabled": "auto"},
}
"""A file of DeepSpeed's that must change nothing but how gradients travel."""


def adapters(model: Path, zero: int, rank: int, world: int) -> dict[str, Any]:
    """Three steps of LoRA: which weights moved."""
    actor = Rank(model, zero, **LORA)
    before = {name: p.detach().clone() for name, p in actor.zero.module.named_parameters()}
    mine = shares(STEPS[0], rank, world, lazy=False)
    for _ in range(3):
        assert actor.close(STEPS[0], actor.add(mine))
    after = dict(actor.zero.module.named_parameters())
    moved = [name for name in before if not bool((after[name] == before[name]).all())]
    return {"moved": moved, "names": list(before)}


def averaged(model: Path, zero: int, rank: int, world: int) -> dict[str, Any]:
    """Three steps, and the moving average of their weights."""
    import torch

    from learner.build import load_model
    from learner.moving_average import MovingAverage

    actor = Rank(model, zero)
    own = load_model(model, torch.device("cpu"))
    actor.passes.average = MovingAverage(own, actor.zero.module, decay=0.5)
    for groups in STEPS:
        assert actor.close(groups, actor.add(shares(groups, rank, world, lazy=False)))
    return {"average": torch.cat([p.detach().flatten() for p in own.parameters()])}


def scaled(model: Path, zero: int, rank: int, world: int) -> dict[str, Any]:
    """Two steps whose rate the loss halves, knowing what all ranks have computed."""
    actor = Rank(model, zero)
    asked: list[float] = []

    def halve(sums: dict[str, float]) -> float:
        asked.append(sums["computed"])
        return 0.5

    actor.passes.loss_pass.loss.step_scale = halve
    for groups in STEPS[:2]:
        assert actor.close(groups, actor.add(shares(groups, rank, world, lazy=False)))
    scales = [[found["lr"], found["lr_scale"]] for found in actor.metrics]
    return {"asked": asked, "scales": scales, "weights": actor.weights()}


def main() -> None:
    import torch

    from learner.deepspeed import engine as deep
    from learner.deepspeed.engine import join_ranks, leave_ranks

    deep.PERSISTENT_ELEMENTS = 100  # as in tests.learner.ranks
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    join_ranks()
    found: dict[str, Any] = {}
    for zero in (1, 3):
        found[f"bf16-{zero}"] = streamed(model, zero, rank, world, **BF16)
    for zero in (2, 3):
        found[f"bf16-resumed-{zero}"] = resumed(model, zero, rank, world, out, **BF16)
        found[f"decayed-{zero}"] = streamed(model, zero, rank, world, **DECAYED)
    for zero in (0, 3):
        found[f"checkpointed-{zero}"] = streamed(model, zero, rank, world, **CHECKPOINTED)
    for zero in (0, 2, 3):
        found[f"sequences-{zero}"] = streamed(model, zero, rank, world, aggregate="sequence")
    for zero in (0, 2):
        found[f"scaled-{zero}"] = scaled(model, zero, rank, world)
        found[f"averaged-{zero}"] = averaged(model, zero, rank, world)
    found["decayed-resumed-2"] = resumed(model, 2, rank, world, out, **DECAYED)
    found["lora-0"] = adapters(model, 0, rank, world)
    for zero in (0, 2):
        found[f"lora-resumed-{zero}"] = resumed(model, zero, rank, world, out, **LORA)
    theirs = out / f"deepspeed-{rank}.json"
    theirs.write_text(json.dumps(THEIRS))
    found["theirs-2"] = streamed(model, 2, rank, world, deepspeed=str(theirs))
    torch.save(found, out / f"rank{rank}.pt")
    leave_ranks()


if __name__ == "__main__":
    main()
