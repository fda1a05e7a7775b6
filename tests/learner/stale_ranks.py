"""Runs ranks that close a version, change their weights, and train on tokens of before.

As a program (`python -m tests.learner.stale_ranks MODEL OUT`): the scenarios below at the ZeRO
stages of `ZEROS`, into OUT/rankR.pt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.wire.messages import (
    CloseVersion,
    Piece,
    StreamedChunk,
    StreamedTokens,
    TrainGroup,
    floats,
)
from tests.learner.ranks import STEPS, TEMPERATURE, ZEROS, Rank, group_of, shares

STALE: dict[str, Any] = {"lr": 5e-3, "max_staleness": 1}
"""A version moves the weights far enough that ratios are clipped."""


def order_of(groups: Iterable[TrainGroup]) -> CloseVersion:
    """The stage's question about all members of these groups."""
    groups = list(groups)
    return CloseVersion(
        version=0,
        prompts={group.group: group.prompt for group in groups},
        chunks=tuple(
            StreamedChunk(group.group, m.trajectory, 0, m.response)
            for group in groups
            for m in group.members
        ),
    )


def gathered(pieces: Iterable[Piece]) -> dict[int, list[float]]:
    """Trajectory -> its logprobs, of pieces without a gap."""
    found: dict[int, list[float]] = {}
    for piece in pieces:
        known = found.setdefault(piece.trajectory, [])
        assert piece.first == len(known)
        known += floats(piece.logprobs).tolist()
    return found


def stale_half(group: TrainGroup, old: dict[int, list[float]]) -> TrainGroup:
    """The group as the stage sends it: the first half of each response is of version 0."""
    members = []
    for member in group.members:
        values = np.full(len(member.response) // 4, np.nan, dtype="<f4")
        half = (len(values) + 1) // 2
        values[:half] = old[member.trajectory][:half]
        members.append(msgspec.structs.replace(member, old=values.tobytes()))
    return msgspec.structs.replace(group, members=tuple(members))


def trained(model: Path, zero: int, rank: int, world: int, **settings: Any) -> dict[str, Any]:
    """Close version 0 for step 1's groups, train step 0, then step 1 with what was kept."""
    import torch.distributed

    from learner.step.close_version import VersionCloser

    actor = Rank(model, zero, **STALE, **settings)
    mine = shares(STEPS[1], rank, world, lazy=True)  # the other rank has nothing to compute
    calls = VersionCloser(actor.passes, None).close(order_of(mine), lambda: False)
    kept = gathered(piece for pieces in calls for piece in pieces)
    everyone: list[dict[int, list[float]]] = [{} for _ in range(world)]
    torch.distributed.all_gather_object(everyone, kept)
    old = {name: values for found in everyone for name, values in found.items()}
    assert actor.close(STEPS[0], actor.add(shares(STEPS[0], rank, world, lazy=False)))
    before = actor.weights().clone()
    mine = [stale_half(group, old) for group in shares(STEPS[1], rank, world, lazy=False)]
    assert actor.close(STEPS[1], actor.add(mine))
    return {
        "old": old,
        "between": before,
        "weights": actor.weights(),
        "momentum": actor.momentum(zero),
        "metrics": actor.metrics[1],
    }


def stopped(model: Path, zero: int, rank: int, world: int) -> int:
    """Calls until rank 0 has other work, after its first one: where passes communicate both
    stop together."""
    from learner.step.close_version import VersionCloser

    actor = Rank(model, zero, **STALE)
    calls = 0

    def stop() -> bool:
        return rank == 0 and calls > 0

    for _ in VersionCloser(actor.passes, None).close(order_of(map(group_of, STEPS[0])), stop):
        calls += 1
    return calls


def streamed(model: Path, kv_tokens: int) -> dict[str, Any]:
    """What a rank's stream answers before and after a step, and the weights that it had."""
    from learner.step.close_version import VersionCloser, pieces_of
    from learner.streaming.cached_forward import CachedForward
    from learner.streaming.logprob_stream import ModelStream

    actor = Rank(model, 0, **STALE)
    cached = CachedForward(actor.zero.engine, TEMPERATURE, kv_tokens, entropy=True)
    own = ModelStream(cached)
    actor.passes._old_stream = own  # pyright: ignore[reportPrivateUsage]
    groups = [group_of(number) for number in STEPS[1]]
    found: dict[str, Any] = {}
    for version in range(2):
        found[f"weights{version}"] = actor.weights().clone()
        order = order_of(groups)
        half = tuple(
            msgspec.structs.replace(chunk, tokens=chunk.tokens[: 8 * (len(chunk.tokens) // 16)])
            for chunk in order.chunks
            if len(chunk.tokens) > 16
        )
        own.add_streamed(StreamedTokens(prompts=order.prompts, chunks=half))
        pieces: list[Piece] = []
        while own.pending_tokens:
            pieces += pieces_of(own.run_call())
        streaming = len(pieces)
        closer = VersionCloser(actor.passes, own)
        pieces += [piece for call in closer.close(order, lambda: False) for piece in call]
        found[f"pieces{version}"] = [
            (p.trajectory, p.first, floats(p.logprobs).tolist(), floats(p.entropies).tolist())
            for p in pieces
        ]
        found[f"ahead{version}"] = streaming
        if version == 0:
            assert actor.close(STEPS[0], actor.add([group_of(number) for number in STEPS[0]]))
    return found


def main() -> None:
    import torch

    from learner.deepspeed import engine as deep
    from learner.deepspeed.engine import join_ranks, leave_ranks

    deep.PERSISTENT_ELEMENTS = 100
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    join_ranks()
    found: dict[str, Any] = {}
    for zero in ZEROS[world]:
        found[f"single{zero}"] = trained(model, zero, rank, world)
        found[f"several{zero}"] = trained(model, zero, rank, world, updates=2)
        found[f"stopped{zero}"] = stopped(model, zero, rank, world)
    if world == 1:
        found["roomy"] = streamed(model, 10_000)
        found["crowded"] = streamed(model, 60)
    torch.save(found, out / f"rank{rank}.pt")
    leave_ranks()


if __name__ == "__main__":
    main()
