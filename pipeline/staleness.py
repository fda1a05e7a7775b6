"""Bounded asynchrony: how far generation may run ahead, and what must be trained on now.

`max_staleness = k`: no token is trained on that was sampled by weights more
than `k` versions old. Prompts of the next k steps go out before the update is
published; the last steps of a run open no more than they can train on. Pure.
Source of the admission rule: AReaL, arXiv 2505.24298.
"""

from __future__ import annotations

from pipeline.core import Core
from pipeline.groups import Group, Stage, State


def ahead(core: Core) -> int:
    """Steps that generation may be ahead of the open one."""
    return max(0, min(core.settings.max_staleness, core.settings.steps - 1 - core.step))


def versions(group: Group) -> list[int]:
    """Policy versions of the tokens that the group may train on, or trains on once it is chosen."""
    return [
        version
        for member in group.members
        if (member.id in group.chosen if group.chosen else member.state is not State.ABORTED)
        for version in member.versions
    ]


def too_old(core: Core, group: Group) -> bool:
    """Whether it holds a token that may not be trained on any more (or of no known version)."""
    oldest = core.version - core.settings.max_staleness
    return any(not oldest <= version <= core.version for version in versions(group))


def due(core: Core) -> list[Group]:
    """Groups that would be too old after the next publish: now, or not at all. Oldest first."""
    groups = core.train_groups(Stage.OPEN, Stage.CHOSEN, Stage.READY)
    limit = core.version - core.settings.max_staleness
    return [group for group in groups if min(versions(group), default=limit + 1) <= limit]


def of_trained(core: Core, groups: list[Group]) -> dict[str, float]:
    """Mean and largest age, in versions, of the oldest token of each member trained on."""
    ages = [
        core.version - member.versions[0]
        for group in groups
        for member in group.members
        if member.id in group.chosen and member.versions
    ]
    if not ages or not core.settings.max_staleness:
        return {}
    return {"staleness_mean": sum(ages) / len(ages), "staleness_max": max(ages)}
