"""Learner ranks whose memory is small: a program of `tests.learner.ranks.run_ranks`.

Memory is modelled as the most tokens of a pass: one with more raises torch's error, in its
forward or in the middle of its backward, as often as it is tried.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.learner.ranks import STEPS, Rank, shares

FITS = 50
"""Tokens: a third of `tokens_per_micro_batch`, and more than any single response has."""
TOO_SMALL = 12


@contextlib.contextmanager
def memory_of(model: Any, tokens: int, where: str) -> Iterator[list[int]]:
    """Have passes over more than `tokens` tokens fail; yields the sizes of all that were begun."""
    import torch

    sizes: list[int] = []
    layer = model.model.layers[0]

    def begin(_module: Any, _given: Any, named: dict[str, Any]) -> None:
        sizes.append(named["input_ids"].numel())
        if sizes[-1] > tokens and where == "forward":
            raise torch.OutOfMemoryError("the test's")

    def exhaust(gradient: Any) -> None:
        raise torch.OutOfMemoryError("the test's")

    def watch(_module: Any, _given: Any, found: Any) -> None:
        if sizes[-1] > tokens and where == "backward" and torch.is_grad_enabled():
            (found[0] if isinstance(found, tuple) else found).register_hook(exhaust)

    hooks = [
        model.register_forward_pre_hook(begin, with_kwargs=True),
        layer.register_forward_hook(watch),
    ]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


def starved(
    model: Path, zero: int, rank: int, world: int, where: str, *, together: bool
) -> dict[str, Any]:
    """Two steps in which only small micro-batches fit into memory."""
    actor = Rank(model, zero)
    with memory_of(actor.zero.module, FITS, where) as sizes:
        for groups in STEPS[:2]:
            mine = shares(groups, rank, world, lazy=False)
            assert actor.close(groups, actor.add(mine, together=together))
    return {
        "weights": actor.weights(),
        "sizes": sizes,
        "limits": [metrics["micro_batch_tokens"] for metrics in actor.metrics],
    }


def plenty(model: Path, zero: int, rank: int, world: int) -> Any:
    """The weights after the same two steps with plenty of memory."""
    plain = Rank(model, zero)
    for groups in STEPS[:2]:
        assert plain.close(groups, plain.add(shares(groups, rank, world, lazy=False)))
    return plain.weights()


def reference(model: Path, rank: int, world: int) -> dict[str, Any]:
    """ZeRO 3; rank 0's reference model, which runs alone, has little memory."""
    actor, plain = (Rank(model, 3, loss={"kl": 0.2}) for _ in range(2))
    mine = shares(STEPS[0], rank, world, lazy=False)
    tokens = 10**6 if rank else FITS
    with memory_of(actor.passes._model_reference, tokens, "forward") as sizes:
        counted = actor.add(mine, together=True)
    assert actor.close(STEPS[0], counted)
    assert plain.close(STEPS[0], plain.add(mine, together=True))
    return {"weights": actor.weights(), "plain": plain.weights(), "sizes": sizes}


def shortage(
    model: Path, zero: int, rank: int, world: int, tokens: int, where: str, **settings: Any
) -> dict[str, Any]:
    """A step that ends because memory ran out, on all ranks alike: nobody waits for another."""
    from learner.forward.memory import MemoryShortage

    actor = Rank(model, zero, **settings)
    mine = shares(STEPS[0], 0, world, lazy=False)
    with memory_of(actor.zero.module, tokens, where) as sizes:
        try:
            actor.close(STEPS[0], actor.add(mine, together=True))
        except MemoryShortage as error:
            return {"tokens": error.tokens, "why": str(error), "sizes": sizes}
    raise AssertionError("it had memory enough")


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
    for zero in (0, 2):
        for where in ("forward", "backward"):
            together = where == "forward"
            result = starved(model, zero, rank, world, where, together=together)
            found[f"{where}{zero}"] = result
        found[f"plenty{zero}"] = plenty(model, zero, rank, world)
    found["floor0"] = shortage(model, 0, rank, world, TOO_SMALL, "backward")
    found["reference"] = reference(model, rank, world)
    found["together"] = shortage(model, 3, rank, world, FITS, "backward")
    alone = {"tokens_per_micro_batch": 1}  # each response has a pass of its own
    found["floor3"] = shortage(model, 3, rank, world, TOO_SMALL, "backward", **alone)
    found["old"] = shortage(model, 3, rank, world, FITS, "forward", updates=2)
    torch.save(found, out / f"rank{rank}.pt")
    leave_ranks()


if __name__ == "__main__":
    main()
