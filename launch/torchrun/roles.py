"""Roles: which ranks of torchrun become learner ranks and which engines. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.schema import Config
from pipeline.config.trained import learner_ranks


class RolesError(Exception):
    """The number of ranks does not fit the configuration; the message says the cure."""


def check_world(world: int, config: Config) -> None:
    """Raises RolesError unless torchrun has started as many ranks as the job has roles."""
    if not learner_ranks(config):
        raise RolesError("step.count is 0: nothing would be trained; evaluate with darts eval")
    _check_count(world, config.learner.ranks, config.engine.count)


def _check_count(world: int, ranks: int, engines: int) -> None:
    if world != ranks + engines:
        raise RolesError(
            f"torchrun started {world} ranks, but learner.ranks {ranks} + engine.count "
            f"{engines} are {ranks + engines}: choose --nnodes and --nproc-per-node to match"
        )


def assign_roles(
    nodes: Sequence[int], ranks: int, engines: int, learners: str = "first"
) -> list[str]:
    """Returns the role of each rank: "l0", "l1", ... are learner ranks, "e0", ... engines.

    Args:
        nodes: the machine of each rank, numbered from 0; ranks of one machine are neighbours.
        ranks, engines: how many of each (`learner.ranks`, `engine.count`).
        learners: `first`, or `spread` over machines, as evenly as they have room.

    Raises: RolesError if there are not as many ranks as roles.

    >>> assign_roles([0, 0, 0, 1, 1, 1], 3, 3)
    ['l0', 'l1', 'l2', 'e0', 'e1', 'e2']
    >>> assign_roles([0, 0, 0, 1, 1, 1], 3, 3, "spread")
    ['l0', 'l1', 'e0', 'l2', 'e1', 'e2']
    """
    _check_count(len(nodes), ranks, engines)
    chosen = set(range(ranks)) if learners == "first" else _spread(nodes, ranks)
    numbers = {True: 0, False: 0}
    names: list[str] = []
    for rank in range(len(nodes)):
        learner = rank in chosen
        names.append(f"{'l' if learner else 'e'}{numbers[learner]}")
        numbers[learner] += 1
    return names


def _spread(nodes: Sequence[int], ranks: int) -> set[int]:
    """Gives each learner to the machine that has the fewest and still has room."""
    free = {node: [r for r, where in enumerate(nodes) if where == node] for node in nodes}
    taken: dict[int, list[int]] = {node: [] for node in free}
    for _ in range(ranks):
        node = min((n for n in free if free[n]), key=lambda n: (len(taken[n]), n))
        taken[node].append(free[node].pop(0))
    return {rank for held in taken.values() for rank in held}
